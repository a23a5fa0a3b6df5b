"""What has been predicted so far, in parts: a second run does only what is missing.

OUT/predict.json names the models and settings, OUT/parts/ holds a file for every few hundred
pictures, written whole or not at all, with the names of the pictures that it answers for.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from heatmap import workdir
from heatmap.errors import UserError
from heatmap.inference import instances
from heatmap.inference.instances import Instances
from input_pipeline.sources import WHOLE, Source

_SETTINGS, _FOLDER = "predict.json", "parts"


class Parts:
    """The parts of an output folder."""

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]):
        """Opens a folder, or makes it.

        Args:
          folder: OUT.
          settings: what predictions depend on, JSON; other settings need another folder.

        Raises:
          UserError: if the folder holds something else.
        """
        path = folder / _SETTINGS
        if path.is_file():
            try:
                earlier = json.loads(path.read_text())
            except ValueError:
                earlier = None
            if earlier != json.loads(json.dumps(settings)):
                raise UserError(
                    f"{folder} holds predictions of other models, boxes or settings; choose "
                    "another --out, or delete it."
                )
        elif (folder.is_dir() and any(folder.iterdir())) or folder.is_file():
            raise UserError(
                f"{folder} is not empty and holds no {_SETTINGS}, so it is not of ours; choose "
                "another --out."
            )
        else:
            workdir.write_json(path, settings)
        self._folder = folder / _FOLDER
        self._folder.mkdir(exist_ok=True)
        self._files: list[pathlib.Path] = []
        self._told: dict[tuple[str, str], list[tuple[int, list[Any]]]] = {}
        for path in self._paths():
            self._index(path, instances.pictures_in(path))

    def _index(self, path: pathlib.Path, told: Sequence[list[Any]]) -> None:
        """Notes what a part says of each source as it was then, by name and stamp."""
        for row in told:
            self._told.setdefault((row[0], row[1]), []).append((len(self._files), row))
        self._files.append(path)

    def missing(self, sources: Sequence[Source]) -> list[Source]:
        """Lists the sources that are not here as they are now, or not to their end."""
        return [source for source in sources if not self._is_whole(source)]

    def _is_whole(self, source: Source) -> bool:
        if not source.is_video:
            return bool(self._stretches(source))
        counts = [row[4] for _, row in self._rows(source) if row[4] is not None]
        return self.next_frame(source) in counts

    def _rows(self, source: Source) -> list[tuple[int, list[Any]]]:
        """Returns what the parts say of a source as it is now, with the place of each part."""
        return self._told.get((source.name, source.stamp), [])

    def next_frame(self, source: Source) -> int:
        """Returns the first frame of a video that is not here."""
        stretches = self._stretches(source)
        return stretches[-1][2] + 1 if stretches else 0

    def _stretches(self, source: Source) -> list[tuple[int, int, int]]:
        """Lists what a source as it is now is read from: part, first and last frame, in order.

        They join up; what lies behind a part that is gone is left out, and will be made anew.
        """
        told = [(row[2], n, row[3]) for n, row in self._rows(source) if row[3] >= row[2]]
        found: list[tuple[int, int, int]] = []
        coming = min((first for first, *_ in told), default=0)  # WHOLE for a picture
        for first, part, last in sorted(told):
            if first <= coming <= last:
                found.append((part, coming, last))
                coming = last + 1
        return found if not source.is_video or (found and found[0][1] == 0) else []

    def add(
        self, found: Instances, seen: dict[Source, tuple[int, int]], ended: dict[Source, int]
    ) -> None:
        """Writes a part.

        Args:
          found: its instances.
          seen: the first and the last frame of each source in it, or WHOLE twice.
          ended: videos of which nothing is to come, with the number of their frames.
        """
        none = (WHOLE, WHOLE - 1)
        told = [[s.name, s.stamp, *seen.get(s, none), ended.get(s)] for s in {**seen, **ended}]
        number = 1 + max((int(path.stem) for path in self._paths()), default=-1)
        path = self._folder / f"{number:06d}.parquet"
        instances.save(path, found, told)
        self._index(path, told)

    def stream(self, sources: Sequence[Source]) -> Iterator[Instances]:
        """Yields what is known of these sources as they are now, a part at a time.

        Raises:
          UserError: naming a part that is damaged.
        """
        wanted: dict[int, dict[str, tuple[int, int]]] = {}  # of each part, frames by source
        for source in sources:
            for part, first, last in self._stretches(source):
                wanted.setdefault(part, {})[source.name] = (first, last)
        for part, frames in wanted.items():  # in the order of their first sources
            path = self._files[part]
            found = self._load(path)
            nothing = (1, 0)
            ends = np.array([frames.get(name, nothing) for name in found.source.tolist()])
            if len(found):
                kept = found.take((ends[:, 0] <= found.frame) & (found.frame <= ends[:, 1]))
                if len(kept):
                    yield kept

    def _load(self, path: pathlib.Path) -> Instances:
        try:
            return instances.load(path)
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({str(error).splitlines()[0]:.100}); delete it, and give the "
                "same command again."
            ) from error

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("[0-9]*.parquet"))

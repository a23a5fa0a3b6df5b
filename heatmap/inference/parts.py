"""What has been predicted so far, in parts: a second run does only what is missing.

OUT/predict.json names the models and settings, OUT/parts/ holds a file for every few hundred
pictures, written whole or not at all, with the names of the pictures that it answers for.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

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
        self._contents = [(path, instances.pictures_in(path)) for path in self._paths()]

    def missing(self, sources: Sequence[Source]) -> list[Source]:
        """Lists the sources that are not here as they are now, or not to their end."""
        ended = {(n, stamp) for _, told in self._contents for n, stamp, _, end in told if end}
        return [source for source in sources if (source.name, source.stamp) not in ended]

    def next_frame(self, source: Source) -> int:
        """Returns the first frame of a video that is not here."""
        return max(
            (
                last + 1
                for _, told in self._contents
                for name, stamp, last, _ in told
                if (name, stamp) == (source.name, source.stamp)
            ),
            default=0,
        )

    def add(self, found: Instances, seen: dict[Source, int], ended: set[Source]) -> None:
        """Writes a part.

        Args:
          found: its instances.
          seen: the last frame of each source in it, or WHOLE.
          ended: those of which nothing is to come.
        """
        told = [[s.name, s.stamp, last, s in ended or last == WHOLE] for s, last in seen.items()]
        told += [[s.name, s.stamp, WHOLE, True] for s in ended if s not in seen]
        path = self._folder / f"{len(self._contents):06d}.parquet"
        instances.save(path, found, told)
        self._contents.append((path, told))

    def stream(self, sources: Sequence[Source]) -> Iterator[Instances]:
        """Yields what is known of these sources as they are now, a part at a time."""
        now = {source.name: source.stamp for source in sources}
        for path, told in self._contents:
            valid = {name for name, stamp, *_ in told if now.get(name) == stamp}
            if valid:
                found = instances.load(path)
                kept = found.take([name in valid for name in found.source.tolist()])
                if len(kept):
                    yield kept

    def _paths(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("[0-9]*.parquet"))

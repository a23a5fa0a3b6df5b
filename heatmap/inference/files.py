"""Files of predictions: Parquet, CSV, COCO keypoints and DeepLabCut, written part by part.

Nothing here holds more than a part in memory, and each file is whole or not there.
"""

import collections
import contextlib
import csv
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from heatmap import workdir
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.inference import tables
from heatmap.inference.instances import Instances
from heatmap.inference.tables import Columns, Meaning
from heatmap.keypoints import KeypointSet

Boxes = Mapping[str, Sequence[np.ndarray]]
Stream = Callable[[], Iterable[Instances]]  # from the start each time
SCORER = "heatmap"
_UNFINISHED = ".unfinished-"


def write(formats: Sequence[str], folder: pathlib.Path, stream: Stream, meaning: Meaning) -> None:
    """Writes what was predicted.

    Args:
      formats: keys of `FORMATS`.
      folder: OUT.
      stream: gives the instances.
      meaning: of them.

    Raises:
      UserError: if a format cannot hold them.
    """
    for name in formats:
        FORMATS[name](folder, stream, meaning)


def _tables(folder: pathlib.Path, stream: Stream, meaning: Meaning, suffix: str) -> None:
    """Writes points, and lengths where there are measurements."""
    kinds: dict[str, Callable[[Instances, Meaning], Columns]] = {"points": tables.of_points}
    if meaning.points.measurements:
        kinds["lengths"] = tables.of_lengths
    for name, columns_of in kinds.items():
        parts = (columns_of(found, meaning) for found in stream())
        with workdir.replacing(folder / f"{name}.{suffix}") as temporary:
            _write_table(tables.batches(parts), temporary, suffix)


def _write_table(batches: Iterator[pa.RecordBatch], path: pathlib.Path, suffix: str) -> None:
    first = next(batches, None)
    if first is None:
        raise UserError("Nothing was predicted: no picture could be read, or none has an instance.")
    with contextlib.ExitStack() as stack:
        if suffix == "csv":
            writer = stack.enter_context(pa.csv.CSVWriter(path, first.schema))
        else:
            writer = stack.enter_context(pa.parquet.ParquetWriter(path, first.schema))
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _parquet(folder: pathlib.Path, stream: Stream, meaning: Meaning) -> None:
    _tables(folder, stream, meaning, "parquet")


def _csv(folder: pathlib.Path, stream: Stream, meaning: Meaning) -> None:
    _tables(folder, stream, meaning, "csv")


def _coco(folder: pathlib.Path, stream: Stream, meaning: Meaning) -> None:
    """Writes coco.json, which data.name=coco reads once the pictures lie under images/."""
    with workdir.replacing(folder / "coco.json") as temporary, temporary.open("w") as file:
        file.write('{"categories": [' + json.dumps(_category(meaning.points)) + '],\n"images": [')
        _write_list(file, _images(stream()))
        file.write('],\n"annotations": [')
        _write_list(file, _annotations(stream(), meaning.config.data.pixel_center))
        file.write("]}\n")


def _category(points: KeypointSet) -> dict[str, Any]:
    def pairs(values):
        return [[a + 1, b + 1] for a, b in values]

    return {
        "id": 1,
        "name": "instance",
        "keypoints": list(points.names),
        "skeleton": pairs(points.skeleton),
        "flip_pairs": pairs(points.flip_pairs),
        "interchangeable_pairs": pairs(points.interchangeable_pairs),
    }


def _write_list(file: IO[str], values: Iterable[Any]) -> None:
    for i, value in enumerate(values):
        file.write((",\n" if i else "\n") + json.dumps(value))


def _by_picture(stream: Iterable[Instances]) -> Iterator[tuple[int, Instances, int, bool]]:
    """Yields (image id, its part, row, whether it is the picture's first) of each instance."""
    last, number = None, 0
    for found in stream:
        for row in range(len(found)):
            picture = (str(found.source[row]), int(found.frame[row]))
            number += picture != last
            yield number, found, row, picture != last
            last = picture


def _images(stream: Iterable[Instances]) -> Iterator[dict[str, Any]]:
    from input_pipeline import sources

    for number, found, row, first in _by_picture(stream):
        if first:
            height, width = (int(side) for side in found.size[row])
            name = sources.picture_name(str(found.source[row]), int(found.frame[row]))
            yield {"id": number, "file_name": name, "height": height, "width": width}


def _annotations(stream: Iterable[Instances], pixel_center: float) -> Iterator[dict[str, Any]]:
    for i, (number, found, row, _) in enumerate(_by_picture(stream), start=1):
        place = found.points[row] + pixel_center  # which the reader takes off again
        known = np.isfinite(place).all(axis=1)
        table = np.where(known[:, None], place, 0.0)
        x0, y0, x1, y1 = (float(edge) for edge in found.box[row])
        score = found.score[row]
        yield {
            "id": i,
            "image_id": number,
            "category_id": 1,
            "keypoints": np.column_stack([table, 2 * known]).ravel().tolist(),
            "num_keypoints": int(known.sum()),
            "bbox": [x0 + 0.5, y0 + 0.5, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": 0,
            "score": None if np.isnan(score).all() else float(np.nanmean(score)),
        }


def _deeplabcut(folder: pathlib.Path, stream: Stream, meaning: Meaning) -> None:
    """Writes deeplabcut/NAME.csv for each video, and pictures.csv for all pictures."""
    with _deeplabcut_tables(folder / "deeplabcut", stream, meaning) as tables_by_path:
        for path, table in tables_by_path.items():
            table.replace(path)


def _deeplabcut_h5(folder: pathlib.Path, stream: Stream, meaning: Meaning) -> None:
    """Writes the same as HDF5, in chunks."""
    pandas = _pandas()
    with _deeplabcut_tables(folder / "deeplabcut", stream, meaning) as tables_by_path:
        for path, table in tables_by_path.items():
            with workdir.replacing(path.with_suffix(".h5")) as temporary:
                for chunk in pandas.read_csv(table, header=[0, 1, 2], index_col=0, chunksize=1000):
                    chunk.columns.names = ["scorer", "bodyparts", "coords"]
                    chunk.to_hdf(temporary, key="df_with_missing", format="table", append=True)


def _pandas() -> Any:
    """Imports pandas, which writes HDF5 with PyTables.

    Raises:
      UserError: if one of them is not installed.
    """
    try:
        import pandas
        import tables as _  # noqa: F401
    except ImportError as error:
        raise UserError(
            "HDF5 needs pandas and PyTables: pip install -e '.[deeplabcut]'."
        ) from error
    return pandas


def check(formats: Sequence[str]) -> None:
    """Finds that formats are known and can be written, before anything is predicted.

    Raises:
      UserError: for an unknown format, or a library that is not installed.
    """
    for name in formats:
        choose(FORMATS, name, "--formats")
    if "deeplabcut_h5" in formats:
        _pandas()


def check_instances(formats: Sequence[str], sources: Sequence, boxes: Boxes | None) -> None:
    """Finds that formats can hold so many instances, before anything is predicted.

    Args:
      formats: keys of `FORMATS`.
      sources: `input_pipeline.sources.Source`.
      boxes: of instances by file name, or None.

    Raises:
      UserError: naming a picture, video or frame with several.
    """
    from input_pipeline.sources import ends_of

    if boxes is None or not {"deeplabcut", "deeplabcut_h5"} & set(formats):
        return
    known = {end for source in sources for end in ends_of(source.name)}
    for name, mine in boxes.items():
        if len(mine) > 1 and known & {name, name.rpartition("#")[0]}:  # or a frame, film.mp4#000012
            raise UserError(
                f"{name} has several instances, which a table of DeepLabCut's for single animals "
                "cannot hold; write --formats=parquet,csv,coco."
            )


@contextlib.contextmanager
def _deeplabcut_tables(
    folder: pathlib.Path, stream: Stream, meaning: Meaning
) -> Iterator[dict[pathlib.Path, pathlib.Path]]:
    """Yields temporary tables by the path that each is to have."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    names: dict[str, pathlib.Path] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=_UNFINISHED) as temporary:
        for found in stream():
            _append_deeplabcut(found, meaning, folder, pathlib.Path(temporary), names)
        yield {path: pathlib.Path(temporary) / path.name for path in names.values()}


def _append_deeplabcut(
    found: Instances,
    meaning: Meaning,
    folder: pathlib.Path,
    temporary: pathlib.Path,
    names: dict[str, pathlib.Path],
) -> None:
    """Adds a part to the tables, whose paths `names` holds by source."""
    steps = meaning.calibration.confidence if meaning.calibration else None
    places = found.points + meaning.config.data.pixel_center
    rows = _deeplabcut_rows(places, steps(found.score) if steps else found.score)
    for source in dict.fromkeys(found.source.tolist()):
        mine = np.flatnonzero(found.source == source)
        is_video = found.frame[mine[0]] >= 0
        if source not in names:
            stem = pathlib.Path(source).stem
            names[source] = _unused(folder, stem, names) if is_video else folder / "pictures.csv"
        table = temporary / names[source].name
        fresh = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerows(_deeplabcut_head(meaning.points.names))
            writer.writerows([found.frame[n] if is_video else source, *rows[n]] for n in mine)


def _unused(folder: pathlib.Path, stem: str, names: dict[str, pathlib.Path]) -> pathlib.Path:
    """Names a video's table by its stem, or with a number where two have the same."""
    taken, number, path = set(names.values()), 1, folder / f"{stem}.csv"
    while path in taken or path.stem == "pictures":
        number += 1
        path = folder / f"{stem}-{number}.csv"
    return path


def _deeplabcut_head(names: Sequence[str]) -> list[list[str]]:
    return [
        ["scorer", *[SCORER] * (3 * len(names))],
        ["bodyparts", *(name for name in names for _ in range(3))],
        ["coords", *["x", "y", "likelihood"] * len(names)],
    ]


def _deeplabcut_rows(places: np.ndarray, likelihood: np.ndarray) -> list[list[float]]:
    table = np.concatenate([places, likelihood[..., None]], axis=-1)
    return table.reshape(len(places), -1).tolist()


def write_problems(path: pathlib.Path, problems: Sequence) -> None:
    """Lists what could not be read; nothing stays of an earlier list where all could.

    Args:
      path: of the CSV file.
      problems: `input_pipeline.sources.Problem`.
    """
    if not problems:
        path.unlink(missing_ok=True)
        return
    with workdir.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "frame", "reason"])
        writer.writerows([problem.name, problem.frame, problem.reason] for problem in problems)


def tell_problems(path: pathlib.Path, unread: Sequence, problems: Sequence) -> None:
    """Prints how much there is no answer for.

    Args:
      path: of the list.
      unread: `input_pipeline.sources.Problem`s of files that were not opened.
      problems: of what was.
    """
    if problems:
        print(f"{len(problems)} could not be read; {path} lists them")
    if unread:
        kinds = collections.Counter(pathlib.Path(problem.name).suffix for problem in unread)
        told = ", ".join(f"{count} {suffix}" for suffix, count in kinds.most_common())
        print(f"{len(unread)} files were left out ({told}); {path} says why")


FORMATS: dict[str, Callable[[pathlib.Path, Stream, Meaning], None]] = {
    "parquet": _parquet,
    "csv": _csv,
    "coco": _coco,
    "deeplabcut": _deeplabcut,
    "deeplabcut_h5": _deeplabcut_h5,
}

"""A DeepLabCut project: config.yaml and labeled-data/VIDEO/CollectedData_SCORER.csv.

The table has three header rows (scorer, bodyparts, coords), four in a multi-animal project
(individuals, before bodyparts), and each row begins with the picture's path, in one column or in
three (labeled-data, video, file). A blank cell is a missing point. Where a folder has only the .h5
of the same table, that is read with pandas. Order of points and skeleton come from config.yaml. A
video's folder is a group, and the place in time is that of the file name in natural order. With
several animals every individual is an instance of its own, and left out where it has no point.

DeepLabCut places points on plots whose whole numbers are pixel centres: `data.pixel_center=0.0`.
"""

import csv
import dataclasses
import io
import pathlib
import posixpath
import textwrap
from typing import Any

import numpy as np
import yaml

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import images, labels
from input_pipeline.instances import Instance, assemble
from input_pipeline.records import Records


@dataclasses.dataclass(frozen=True)
class _Project:
    """What config.yaml says."""

    path: pathlib.Path
    scorer: str
    points: KeypointSet


@dataclasses.dataclass(frozen=True)
class _Table:
    """One CollectedData file.

    Attributes:
      path: of the file.
      columns: for each individual ('' in a single-animal project), the column of each
        (bodypart, 'x' or 'y').
      rows: the line in the file, the picture's path with /, and all cells.
    """

    path: pathlib.Path
    columns: dict[str, dict[tuple[str, str], int]]
    rows: list[tuple[int, str, list[str]]]


def read(config: DataConfig) -> Records:
    """Reads the labelled pictures of all videos.

    Args:
      config: `root` is the project's folder.

    Returns:
      One row per picture and individual.

    Raises:
      UserError: for anything wrong with config.yaml, a table or a picture.
    """
    root = labels.root_folder(config, "config.yaml and labeled-data/")
    if config.split.group_by not in ("", "video"):
        raise UserError(
            f"data.split.group_by={config.split.group_by!r} is not known: deeplabcut groups by "
            "'video', which is also the meaning of ''."
        )
    project = _project(root / "config.yaml")
    instances: list[Instance] = []
    files: list[str] = []
    folders = sorted((root / "labeled-data").glob("*/"), key=lambda f: labels.natural_key(f.name))
    for folder in folders:
        if (path := _label_file(folder, project)) is not None:
            text = labels.read_text(path) if path.suffix == ".csv" else _hdf_as_csv(path)
            table = _parse(text, path)
            files += [name for _, name, _ in table.rows]
            instances += _instances(table, project, root)
    labels.check_unique(files, "picture", str(root / "labeled-data"))
    if not instances:
        raise UserError(
            f"{root / 'labeled-data'} has no labels (labeled-data/VIDEO/CollectedData_*.csv); set "
            "data.root to the project's folder."
        )
    return assemble(project.points, instances, config, str(root))


def _project(path: pathlib.Path) -> _Project:
    """Reads config.yaml, with every scalar as text: `no`, `1` and dates are legitimate names."""
    try:
        content = yaml.load(labels.read_text(path), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from error
    animals = isinstance(content, dict) and content.get("multianimalproject") in ("true", "True")
    if animals and content.get("uniquebodyparts"):
        raise UserError(
            f"{path} has 'uniquebodyparts', points that belong to no animal, which are not "
            "supported; remove them from the project."
        )
    field = "multianimalbodyparts" if animals else "bodyparts"
    names = labels.keypoint_names(labels.field(content, field, list, str(path)), str(path))
    # Projects often keep the skeleton of the template, whose names are not theirs. It is only
    # drawn, so such a line is left out rather than refused.
    skeleton = [
        (names.index(pair[0]), names.index(pair[1]))
        for pair in content.get("skeleton") or []
        if isinstance(pair, list) and len(pair) == 2 and set(map(str, pair)) <= set(names)
    ]
    try:
        points = KeypointSet(names, skeleton=tuple(skeleton))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _Project(path, str(content.get("scorer", "")), points)


def _label_file(folder: pathlib.Path, project: _Project) -> pathlib.Path | None:
    """Chooses the table of a video: CSV before h5, and among several scorers the project's."""
    files = sorted(folder.glob("CollectedData_*.csv")) or sorted(folder.glob("CollectedData_*.h5"))
    if len(files) < 2:
        return files[0] if files else None
    own = [file for file in files if file.stem == f"CollectedData_{project.scorer}"]
    if not own:
        raise UserError(
            f"{folder} has the labels of several scorers ({', '.join(f.name for f in files)}), "
            f"none of them the {project.scorer!r} of {project.path.name}; name one there as scorer."
        )
    return own[0]


def _hdf_as_csv(path: pathlib.Path) -> str:
    """Reads the .h5 twin of a table and returns the text that DeepLabCut would write as CSV."""
    try:
        import pandas
        import tables  # noqa: F401  pandas needs it for HDF5, and would say so less clearly
    except ImportError as error:
        raise UserError(
            f"{path} has no CSV beside it, and reading HDF5 needs two more packages: "
            "pip install -e '.[deeplabcut]'."
        ) from error
    try:
        frame: Any = pandas.read_hdf(path)
        frame.index.names = [None] * frame.index.nlevels  # else they make a header row of their own
        return frame.to_csv()
    except Exception as error:  # tables and pandas raise a dozen kinds, some over many lines
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise UserError(
            f"{path} cannot be read as a table of labels ({reason}); export it as CSV from "
            "DeepLabCut."
        ) from error


def _parse(text: str, path: pathlib.Path) -> _Table:
    """Finds header, path columns and rows of a table."""
    try:
        table = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV table ({error}); export it again.") from error
    lines = [(number, cells) for number, cells in enumerate(table, start=1) if any(cells)]
    header = {cells[0]: cells for _, cells in lines[:4]}
    last = next((i for i, (_, cells) in enumerate(lines[:4]) if cells[0] == "coords"), None)
    if last is None or "bodyparts" not in header:
        raise UserError(
            f"{path} does not begin with the header rows scorer, bodyparts and coords; export it "
            "again from DeepLabCut, separated by commas."
        )
    bodyparts, coords = header["bodyparts"], header["coords"]
    individuals = header.get("individuals", [""] * len(coords))
    first = next((i for i, cell in enumerate(coords) if cell in ("x", "y")), len(coords))
    columns: dict[str, dict[tuple[str, str], int]] = {}
    for i, key in enumerate(zip(individuals, bodyparts, coords, strict=False)):
        if i >= first:
            columns.setdefault(key[0], {})[key[1:]] = i
    rows = []
    for number, cells in lines[last + 1 :]:
        if len(cells) != len(coords):
            raise UserError(
                f"{path}, line {number} has {len(cells)} cells instead of {len(coords)}; mend it."
            )
        name = "/".join(cells[:first]).replace("\\", "/")
        rows.append((number, posixpath.normpath(name), cells))
    return _Table(path, columns, rows)


def _instances(table: _Table, project: _Project, root: pathlib.Path) -> list[Instance]:
    """Turns the rows of a table into one instance per individual."""
    names = project.points.names
    for individual, columns in table.columns.items():
        if set(columns) != {(name, axis) for name in names for axis in "xy"}:
            found = ", ".join(dict.fromkeys(name for name, _ in columns))
            raise UserError(
                f"{table.path} has the points {found}{individual and f' for {individual!r}'}, but "
                f"{project.path} has {', '.join(names)}, each with x and y; make them agree."
            )
    ranks = labels.natural_ranks(name for _, name, _ in table.rows)
    instances = []
    for line, name, cells in table.rows:
        where = f"{table.path}, line {line}"
        file = images.safe_path(root, name, where)
        for individual, columns in table.columns.items():
            here = f"{where} ({name}{individual and f', {individual}'})"
            keypoints, labelled = _keypoints(cells, columns, names, here)
            if individual and not labelled.any():
                continue
            instances.append(
                Instance(
                    where=here,
                    id=name.removeprefix("labeled-data/"),
                    file=file,
                    group=table.path.parent.name,
                    order=ranks[name],
                    keypoints=keypoints,
                    labelled=labelled,
                )
            )
    return instances


def _keypoints(
    cells: list[str], columns: dict[tuple[str, str], int], names: tuple[str, ...], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates [K, 2] and labelled [K] of one row; blank (or nan) is missing."""
    keypoints = np.zeros((len(names), 2))
    labelled = np.zeros(len(names), bool)
    for k, name in enumerate(names):
        texts = [cells[columns[name, axis]].strip() for axis in "xy"]
        missing = [text.lower() in ("", "nan") for text in texts]
        if all(missing):
            continue
        if any(missing):
            raise UserError(
                f"{where}: the keypoint {name!r} has only one of x and y; fill in both or neither."
            )
        for axis, text in enumerate(texts):
            keypoints[k, axis] = labels.number(_as_float(text), f"the keypoint {name!r}", where)
        labelled[k] = True
    return keypoints, labelled


def _as_float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text

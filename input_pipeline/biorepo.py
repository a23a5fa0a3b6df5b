"""Carabid beetles of the NEON Biorepository (hub data set imageomics/sentinel-beetles).

    ROOT/annotations.json          one record per specimen, made by the beetle-traits project
    ROOT/train_annotations.json    more of the same, for training only (may be missing)
    ROOT/Output/GROUP/GROUP_n.png  the individual pictures, crops of ROOT/Images/GROUP.png

A record holds `rel_individual_img_path` and `rel_group_img_path` (from ROOT), `beetle_position`,
`taxon_id` (may be null) and `measurements`, each with a nested `polyline` [[x, y], …], which may be
empty. Lines are in pixels of the individual picture; the scale bar is in pixels of the group
picture, which has the same scale. An individual id is not asked for: the published file has none.

In the published file every species has a single group picture, so that by the rule of
`species_groups` all of it validates. What BioRepo gives to train on is in the second file.

The annotation tool gives fractions of pixels. The files do not say whether 0 is the centre or the
outer corner of the first pixel; `data.pixel_center=0.0` (the default) means the centre, 0.5 the
corner. Lengths do not depend on it.
"""

import pathlib
from typing import Any

import numpy as np

from heatmap.config import DataConfig
from heatmap.errors import UserError
from input_pipeline import beetles, images, labels
from input_pipeline.beetles import Specimen
from input_pipeline.records import Records

TRAIN_ANNOTATIONS = "train_annotations.json"

_FOLDER = "Output"
_NAMES = {"elytra_length": "length", "elytra_width": "width", "pronotum_width": "pronotum"}


def read(config: DataConfig) -> Records:
    """Reads all specimens.

    Args:
      config: `root` is the folder described above.

    Returns:
      One row per specimen; `splits` is 'train' for those of the second file, else ''.

    Raises:
      UserError: for anything wrong with the annotations or a picture.
    """
    root = labels.root_folder(config, f"{beetles.ANNOTATIONS} and {_FOLDER}/")
    notes = []
    if not (root / TRAIN_ANNOTATIONS).exists():
        notes.append(
            f"biorepo: there is no {root / TRAIN_ANNOTATIONS}, so only species with several group "
            "pictures can give any to training."
        )
    return beetles.records("biorepo", specimens(root, config.split.group_by), config, notes)


def specimens(root: pathlib.Path, group_by: str = "") -> list[Specimen]:
    """Reads the annotations of both files.

    Args:
      root: the folder described above.
      group_by: the field that names a group; '' = the group picture.

    Raises:
      UserError: naming the record and what is wrong with it.
    """
    found = [
        _specimen(record, root, group_by, "", where)
        for record, where in beetles.entries(root / beetles.ANNOTATIONS)
    ]
    if (root / TRAIN_ANNOTATIONS).exists():
        found += [
            _specimen(record, root, group_by, "train", where)
            for record, where in beetles.entries(root / TRAIN_ANNOTATIONS)
        ]
    return found


def _specimen(
    record: dict[str, Any], root: pathlib.Path, group_by: str, split: str, where: str
) -> Specimen:
    name = labels.field(record, "rel_individual_img_path", str, where).removeprefix(f"{_FOLDER}/")
    where = f"{where} ({name})"
    lines = beetles.polylines(record, _NAMES, "polyline", _nested, where)
    # The second file comes from elsewhere: of the group's path only the picture's name is common.
    group = pathlib.PurePosixPath(labels.field(record, "rel_group_img_path", str, where)).stem
    return Specimen(
        where=where,
        id=name,
        file=images.safe_path(root / _FOLDER, name, where),
        group=labels.group(record, group_by, group, where),
        position=labels.field(record, "beetle_position", int, where),
        species=beetles.text(record, "taxon_id", "scientific_name", where=where),
        bar=lines.pop("scalebar", np.empty((0, 2))),
        lines=lines,
        split=split,
    )


def _nested(value: Any, where: str) -> np.ndarray:
    """Reads [[x, y], …] as [n, 2]."""
    if not isinstance(value, list) or any(not isinstance(p, list) or len(p) != 2 for p in value):
        raise UserError(f"{where}: the polyline must be [[x, y], …], not {value!r:.60}.")
    points = [[labels.number(v, "a coordinate", where) for v in point] for point in value]
    return np.array(points).reshape(-1, 2)


class Biorepo(beetles.Builder):
    """The TFDS builder; see the module for the layout."""

    specimens = staticmethod(specimens)

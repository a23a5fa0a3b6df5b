"""Carabid beetles of NEON sites (hub data set imageomics/2018-NEON-beetles, "BeetlePalooza").

    ROOT/annotations.json                              made by the beetle-traits project
    ROOT/individual_specimens/part_000|part_001/*.png  crops of the resized group pictures

A record holds `indiv_img_rel_path` (a file name; the folder part_000 or part_001 is the one in
`indiv_img_abs_path`, nothing else of which is read), `group_img_basename`, `beetle_position`,
`scientific_name`, `scalebar_px` {x1, y1, x2, y2} or null, and `measurements` by several people,
each with `coords_px` {x1, y1, x2, y2} and an `annotator`. Lines are in pixels of the individual
picture. The scale bar is in pixels of the resized group picture (about 0.35 of the full size). Its
length is taken for that of a centimetre in the individual picture as well, on the assumption that
these were cut from the resized pictures.

Of each line the one by the trusted annotator is taken, else the first. Widths are known to be bad
and have weight 0. All of it is for training: `splits` is 'train' throughout.

People clicked on whole pixels of a picture on the screen: `data.pixel_center=0.0` (the default)
takes these as centres.
"""

import pathlib
from typing import Any

import numpy as np

from heatmap.config import DataConfig
from input_pipeline import beetles, images, labels
from input_pipeline.beetles import Specimen
from input_pipeline.records import Records

TRUSTED = "IsaFluck"

_FOLDER, _PARTS = "individual_specimens", ("part_000", "part_001")
_LENGTH = "elytra_length"


def read(config: DataConfig) -> Records:
    """Reads all specimens.

    Args:
      config: `root` is the folder described above.

    Returns:
      One row per specimen; only the length is labelled.

    Raises:
      UserError: for anything wrong with the annotations or a picture.
    """
    root = labels.root_folder(config, f"{beetles.ANNOTATIONS} and {_FOLDER}/")
    return beetles.records("beetlepalooza", specimens(root, config.split.group_by), config)


def specimens(root: pathlib.Path, group_by: str = "") -> list[Specimen]:
    """Reads the annotations.

    Args:
      root: the folder described above.
      group_by: the field that names a group; '' = the group picture.

    Raises:
      UserError: naming the record and what is wrong with it.
    """
    return [
        _specimen(record, root, group_by, where)
        for record, where in beetles.entries(root / beetles.ANNOTATIONS)
    ]


def _specimen(record: dict[str, Any], root: pathlib.Path, group_by: str, where: str) -> Specimen:
    name = _name(record, where)
    where = f"{where} ({name})"
    group = labels.field(record, "group_img_basename", str, where)
    bar = record.get("scalebar_px")
    return Specimen(
        where=where,
        id=name,
        file=images.safe_path(root / _FOLDER, name, where),
        group=labels.group(record, group_by, group, where),
        position=labels.field(record, "beetle_position", int, where),
        species=beetles.text(record, "scientific_name", where=where),
        bar=np.empty((0, 2)) if bar is None else beetles.ends(bar, f"{where}, scalebar_px"),
        lines=_lines(record, where),
        split="train",
    )


def _name(record: dict[str, Any], where: str) -> str:
    """Returns the picture's name below the folder, with its part."""
    name = labels.field(record, "indiv_img_rel_path", str, where).removeprefix(f"{_FOLDER}/")
    if name.startswith(_PARTS):
        return name
    absolute = labels.field(record, "indiv_img_abs_path", str, where)
    return f"{_PARTS[0] if _PARTS[0] in absolute else _PARTS[1]}/{name}"


def _lines(record: dict[str, Any], where: str) -> dict[str, np.ndarray]:
    """Returns the length; `sorted` is stable, so the first of equals stays first."""
    measurements = labels.field(record, "measurements", list, where, default=[])
    by_trust = sorted(
        measurements,
        key=lambda m: labels.field(m, "annotator", str, where, default="") != TRUSTED,
    )
    ordered = {"measurements": by_trust}
    lines = beetles.polylines(ordered, {_LENGTH: "length"}, "coords_px", beetles.ends, where)
    return {name: line for name, line in lines.items() if name == "length"}


class Beetlepalooza(beetles.Builder):
    """The TFDS builder; see the module for the layout."""

    specimens = staticmethod(specimens)

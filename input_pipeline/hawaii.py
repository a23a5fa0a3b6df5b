"""Carabid beetles of Hawaii (hub data set imageomics/Hawaii-beetles).

    ROOT/annotations.json          one record per specimen, made by the beetle-traits project
    ROOT/individual_specimens/     its pictures, crops of group_images/

A record holds `indiv_img_rel_path` (a file name), `group_img_basename`, `beetle_position`,
`taxon_id` and `measurements`, each with a flat `polyline_px` [x1, y1, x2, y2, …]. Every polyline
is in pixels of the individual picture, the scale bar's too: it lies beside the crop, so its
coordinates are negative or beyond the border, and only its length counts. `individual_id` repeats,
so that a specimen goes by the name of its picture; absolute paths are of another machine and are
not read.

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

_FOLDER = "individual_specimens"
_NAMES = {
    "elytra_max_length": "length",
    "elytra_max_width": "width",
    "basal_pronotum_width": "pronotum",
}


def read(config: DataConfig) -> Records:
    """Reads all specimens.

    Args:
      config: `root` is the folder described above.

    Returns:
      One row per specimen; `splits` is '' throughout.

    Raises:
      UserError: for anything wrong with the annotations or a picture.
    """
    root = labels.root_folder(config, f"{beetles.ANNOTATIONS} and {_FOLDER}/")
    return beetles.records("hawaii", specimens(root, config.split.group_by), config)


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
    name = labels.field(record, "indiv_img_rel_path", str, where).removeprefix(f"{_FOLDER}/")
    where = f"{where} ({name})"
    lines = beetles.polylines(record, _NAMES, "polyline_px", _flat, where)
    group = labels.field(record, "group_img_basename", str, where)
    return Specimen(
        where=where,
        id=name,
        file=images.safe_path(root / _FOLDER, name, where),
        group=labels.group(record, group_by, group, where),
        position=labels.field(record, "beetle_position", int, where),
        species=beetles.text(record, "taxon_id", "scientific_name", where=where),
        bar=lines.pop("scalebar", np.empty((0, 2))),
        lines=lines,
    )


def _flat(value: Any, where: str) -> np.ndarray:
    """Reads [x1, y1, x2, y2, …] as [n, 2]."""
    if not isinstance(value, list) or len(value) % 2:
        raise UserError(
            f"{where}: the polyline must be a flat list [x1, y1, x2, y2, …], not {value!r:.60}."
        )
    return np.array([labels.number(v, "a coordinate", where) for v in value]).reshape(-1, 2)


class Hawaii(beetles.Builder):
    """The TFDS builder; see the module for the layout."""

    specimens = staticmethod(specimens)

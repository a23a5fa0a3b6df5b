"""From the labels of single instances, as a file lists them, to the table of all records."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from heatmap import geometry
from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.geometry import Size
from heatmap.keypoints import KeypointSet
from input_pipeline import images
from input_pipeline.meaning import with_config
from input_pipeline.records import Records


@dataclasses.dataclass(frozen=True)
class Instance:
    """One labelled instance.

    Attributes:
      where: the file and record it stands in, for messages.
      id: the picture's name; instances of one picture share it.
      file: the picture.
      group: what must not be divided between splits.
      order: the place in time within the group.
      keypoints: [K, 2] float64 (x, y), pixels by the file's own convention.
      labelled: [K] bool.
      split: the split that the data names, or ''.
      declared_size: (height, width) that the labels state for the picture, or None.
      box: edges (x0, y0, x1, y1) by the convention of `heatmap.geometry`, or None.
      area: px², or None.
      px_per_cm: the picture's scale, NaN if it is not known.
      species: or ''.
      dataset: the data set, where scores of it alone are wanted, or ''.
      left_out: why no split may hold it, or ''.
    """

    where: str
    id: str
    file: pathlib.Path
    group: str
    order: int
    keypoints: np.ndarray
    labelled: np.ndarray
    split: str = ""
    declared_size: Size | None = None
    box: np.ndarray | None = None
    area: float | None = None
    px_per_cm: float = math.nan
    species: str = ""
    dataset: str = ""
    left_out: str = ""


def assemble(
    points: KeypointSet, instances: Sequence[Instance], config: DataConfig, source: str
) -> Records:
    """Checks the pictures and the labels against them, and fills the columns.

    `data.pixel_center` is subtracted from the keypoints here, for every reader. A box that the
    data does not give is the extent of the labelled points with the pixels they lie in, or the
    whole picture if no point is labelled; an area not given is that of the box.

    Args:
      points: what the points mean by the data; the config has the last word.
      instances: N of them, those of one picture in their order.
      config: of the data.
      source: the label file or folder, for messages.

    Returns:
      The records, without those whose picture is bad under `data.on_error='skip'`.

    Raises:
      UserError: for the first bad picture under 'raise', or labels that do not fit a picture.
    """
    points = with_config(points, config)
    if not any(instance.labelled.any() for instance in instances):
        raise UserError(f"{source} holds no labelled keypoint; check that it is the right file.")
    declared = {instance.file: instance.declared_size for instance in instances}
    headers, skipped = images.check(list(declared), list(declared.values()), config)
    header_of = dict(zip(declared, headers, strict=True))
    numbers: dict[str, itertools.count] = {}
    rows = []
    for instance in instances:
        if (header := header_of[instance.file]) is not None:
            number = next(numbers.setdefault(instance.id, itertools.count()))
            rows.append(_row(instance, number, header, points, config.pixel_center))
    dtypes = {"instances": np.int32, "order": np.int64, "sizes": np.int32, "orientations": np.int32}
    columns: dict[str, Any] = {
        name: np.array([row[name] for row in rows], dtypes.get(name)) for name in rows[0]
    }
    return Records(points=points, skipped=skipped, **columns)


def _row(
    instance: Instance, number: int, header: images.Header, points: KeypointSet, center: float
) -> dict:
    """Returns one value for each column of Records."""
    height, width, orientation = header
    size = (height, width)
    if instance.declared_size not in (None, size):
        stated_height, stated_width = instance.declared_size or size
        raise UserError(
            f"{instance.where} states {stated_width}x{stated_height} pixels, but the picture "
            f"{instance.file} has {width}x{height}; labels and picture must have one size, so "
            "take the picture that was labelled or carry the labels over."
        )
    labelled = instance.labelled
    keypoints = np.where(labelled[:, None], instance.keypoints - center, 0.0)
    _check_near(keypoints, labelled, size, instance, points)
    box = instance.box if instance.box is not None else _extent(keypoints[labelled], size)
    area = instance.area or (box[2] - box[0]) * (box[3] - box[1])
    return {
        "ids": instance.id,
        "instances": number,
        "groups": instance.group,
        "order": instance.order,
        "splits": instance.split,
        "keypoints": keypoints,
        "labelled": labelled,
        "boxes": box,
        "areas": float(area),
        "sizes": size,
        "files": str(instance.file),
        "orientations": orientation,
        "px_per_cm": instance.px_per_cm,
        "species": instance.species,
        "dataset": instance.dataset,
        "left_out": instance.left_out,
    }


def _check_near(
    keypoints: np.ndarray, labelled: np.ndarray, size: Size, instance: Instance, points: KeypointSet
) -> None:
    """Refuses points more than a picture's size outside; slightly outside is legitimate."""
    height, width = size
    low, high = np.array([-width, -height]), np.array([2 * width, 2 * height])
    far = labelled & ((keypoints < low) | (keypoints > high)).any(axis=-1)
    if far.any():
        k = int(np.argmax(far))
        x, y = keypoints[k]
        raise UserError(
            f"{instance.where}: the keypoint {points.names[k]!r} at ({x:g}, {y:g}) lies far "
            f"outside the picture {instance.file} of {width}x{height} pixels; the labels may "
            "belong to another image or to another size of it."
        )


def _extent(keypoints: np.ndarray, size: Size) -> np.ndarray:
    """Returns the edges round points [n, 2], each taken as the pixel it lies in."""
    if not len(keypoints):
        return geometry.image_box(size)
    return np.concatenate([keypoints.min(axis=0) - 0.5, keypoints.max(axis=0) + 0.5])

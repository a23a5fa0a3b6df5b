"""COCO keypoints: ROOT/annotations.json and ROOT/images/.

Every annotation of one category is an instance, several to a picture if need be. A point is
labelled if its v is 1 or 2. Crowds and annotations without a labelled point are left out. A
category may carry, besides `keypoints` and `skeleton`, `flip_pairs` and `interchangeable_pairs`
(like the skeleton pairs of numbers from 1) and `oks_sigmas`. An image may carry `split`, and any
field that `data.split.group_by` names; without it every picture is a group of its own. The place
in time is that of the file name in natural order.

COCO gives boxes by their corners, [x, y, width, height] with (0, 0) the outer corner of the first
pixel, so their edges are moved by -0.5 here. It does not say where in a pixel a keypoint's whole
number lies; tools that place points with the mouse on whole pixels mean the centre, which is the
default `data.pixel_center=0.0`. Set 0.5 for labels that count from the outer corner.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.fields import nearest
from heatmap.geometry import Size
from heatmap.keypoints import KeypointSet, Pair
from input_pipeline import images, labels
from input_pipeline.instances import Instance, assemble
from input_pipeline.records import Records


@dataclasses.dataclass(frozen=True)
class _Image:
    """What an image record says, checked."""

    where: str
    name: str
    file: pathlib.Path
    group: str
    order: int
    split: str
    declared_size: Size | None


def read(config: DataConfig) -> Records:
    """Reads the instances of one category.

    Args:
      config: `root` is the folder described above, `category` the category's name.

    Returns:
      One row per instance that has a labelled point.

    Raises:
      UserError: for anything wrong with the label file or a picture.
    """
    root = labels.root_folder(config, "annotations.json and images/")
    path = root / "annotations.json"
    content = labels.load_json(path)
    category = _category(content, config.category, path)
    points = _points(category, f"{path}, category {category['name']!r}")
    pictures = _images(content, root, path, config.split.group_by)
    instances = _instances(content, category["id"], points, pictures, path)
    return assemble(points, instances, config, str(path))


def read_boxes(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Reads the boxes of all annotations, whatever their category and without their points.

    Args:
      path: a COCO file, such as a detector writes.

    Returns:
      For each file name of its images the edges (x0, y0, x1, y1) of the boxes, perhaps none.

    Raises:
      UserError: naming the record, for an annotation without a box or an image that is not listed.
    """
    content = labels.load_json(path)
    names: dict[int | str, str] = {}
    boxes: dict[str, list[np.ndarray]] = {}
    for i, record in enumerate(labels.field(content, "images", list, str(path))):
        where = f"{path}, images[{i}]"
        name = labels.field(record, "file_name", str, where)
        names[_id(record, "id", where)] = name
        boxes[name] = []
    for i, record in enumerate(labels.field(content, "annotations", list, str(path))):
        where = f"{path}, annotations[{i}]"
        image_id = _id(record, "image_id", where)
        if image_id not in names:
            raise UserError(
                f"{where} belongs to image_id {image_id!r}, which the images do not list; add the "
                "image or remove the annotation."
            )
        box = _box(record, where)
        if box is None:
            raise UserError(f"{where} has no 'bbox'; add one, or predict without boxes.")
        boxes[names[image_id]].append(box)
    return boxes


def _category(content: dict[str, Any], wanted: str, path: pathlib.Path) -> dict[str, Any]:
    """Chooses the category by `data.category`, or the only one with keypoints."""
    categories = labels.field(content, "categories", list, str(path))
    ids, by_name = [], {}
    for i, category in enumerate(categories):
        where = f"{path}, categories[{i}]"
        name = labels.field(category, "name", str, where)
        ids.append(labels.field(category, "id", int, where))
        if labels.field(category, "keypoints", list, where, default=[]):
            by_name[name] = category
    labels.check_unique(ids, "category id", str(path))
    if not by_name:
        raise UserError(f"{path} has no category with keypoints; add their names to a category.")
    if not wanted and len(by_name) > 1:
        raise UserError(
            f"{path} has several categories with keypoints; set data.category to one of "
            f"{', '.join(by_name)}."
        )
    if wanted and wanted not in by_name:
        raise UserError(
            f"data.category={wanted!r} is no category with keypoints of {path}: "
            f"{nearest(wanted, by_name)}"
        )
    return by_name[wanted or next(iter(by_name))]


def _points(category: dict[str, Any], where: str) -> KeypointSet:
    names = labels.keypoint_names(category["keypoints"], where)
    sigmas = labels.field(category, "oks_sigmas", list, where, default=[])
    values = tuple(labels.number(sigma, "an OKS sigma", where) for sigma in sigmas)
    if any(value <= 0 for value in values):
        raise UserError(f"{where}: the 'oks_sigmas' must be positive, not {values}.")
    skeleton, flip_pairs, interchangeable_pairs = (
        _pairs(category, field, len(names), where)
        for field in ("skeleton", "flip_pairs", "interchangeable_pairs")
    )
    try:
        return KeypointSet(names, skeleton, flip_pairs, interchangeable_pairs, oks_sigmas=values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _pairs(category: dict[str, Any], field: str, count: int, where: str) -> tuple[Pair, ...]:
    """Turns pairs of numbers from 1 into pairs of indices from 0."""
    pairs = labels.field(category, field, list, where, default=[])
    for pair in pairs:
        good = isinstance(pair, list) and len(pair) == 2
        if not good or not all(type(i) is int and 1 <= i <= count for i in pair):
            raise UserError(
                f"{where}: {field!r} must hold pairs of keypoint numbers from 1 to {count}, "
                f"not {pair!r:.60}."
            )
    return tuple((a - 1, b - 1) for a, b in pairs)


def _images(
    content: dict[str, Any], root: pathlib.Path, path: pathlib.Path, group_by: str
) -> dict[int | str, _Image]:
    """Reads the image records, by id."""
    records = labels.field(content, "images", list, str(path))
    folder = root / "images"
    pictures: list[tuple[int | str, _Image]] = []
    names = [
        labels.field(record, "file_name", str, f"{path}, images[{i}]")
        for i, record in enumerate(records)
    ]
    ranks = labels.natural_ranks(names)
    for i, (record, name) in enumerate(zip(records, names, strict=True)):
        where = f"{path}, images[{i}] ({name})"
        image = _Image(
            where=where,
            name=name,
            file=images.safe_path(folder, name, where),
            group=labels.group(record, group_by, name, where),
            order=ranks[name],
            split=labels.field(record, "split", str, where, default=""),
            declared_size=labels.declared_size(record, where),
        )
        pictures.append((_id(record, "id", where), image))
    labels.check_unique((key for key, _ in pictures), "image id", str(path))
    files = (image.file.relative_to(folder).as_posix() for _, image in pictures)
    labels.check_unique(files, "file name", str(path))
    return dict(pictures)


def _id(record: dict[str, Any], name: str, where: str) -> int | str:
    """Takes an id, which by the standard is a number and in the wild also text."""
    text = isinstance(record, dict) and isinstance(record.get(name), str)
    return labels.field(record, name, str if text else int, where)


def _instances(
    content: dict[str, Any],
    category_id: int,
    points: KeypointSet,
    pictures: dict[int | str, _Image],
    path: pathlib.Path,
) -> list[Instance]:
    """Reads the annotations of one category, except crowds and those without a point."""
    annotations = labels.field(content, "annotations", list, str(path))
    instances, ids = [], []
    for i, record in enumerate(annotations):
        where = f"{path}, annotations[{i}]"
        if labels.field(record, "category_id", int, where) != category_id:
            continue
        if record.get("id") is not None:
            ids.append(_id(record, "id", where))
            where = f"{where} (id {ids[-1]})"
        image_id = _id(record, "image_id", where)
        if image_id not in pictures:
            raise UserError(
                f"{where} belongs to image_id {image_id!r}, which the images do not list; "
                "add the image or remove the annotation."
            )
        picture = pictures[image_id]
        where = f"{where}, image {picture.name}"
        keypoints, labelled = _keypoints(record, points, where)
        if record.get("iscrowd") or not labelled.any():
            continue
        instances.append(
            Instance(
                where=where,
                id=picture.name,
                file=picture.file,
                group=picture.group,
                order=picture.order,
                keypoints=keypoints,
                labelled=labelled,
                split=picture.split,
                declared_size=picture.declared_size,
                box=_box(record, where),
                area=_area(record, where),
            )
        )
    labels.check_unique(ids, "annotation id", str(path))
    return instances


def _keypoints(
    record: dict[str, Any], points: KeypointSet, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates [K, 2] and labelled [K] of one annotation."""
    values = labels.field(record, "keypoints", list, where)
    if len(values) != 3 * points.count:
        raise UserError(
            f"{where} has {len(values)} numbers in 'keypoints' instead of {3 * points.count}: "
            f"x, y, v for each of {', '.join(points.names)}."
        )
    table = np.array(
        [
            labels.number(value, f"{points.names[i // 3]!r} in 'keypoints'", where)
            for i, value in enumerate(values)
        ]
    ).reshape(-1, 3)  # [K, 3]
    if not np.isin(table[:, 2], (0, 1, 2)).all():
        raise UserError(
            f"{where}: each v in 'keypoints' must be 0 (missing), 1 (hidden) or 2 (visible), not "
            f"{table[:, 2].tolist()}."
        )
    return table[:, :2], table[:, 2] > 0


def _box(record: dict[str, Any], where: str) -> np.ndarray | None:
    """Returns the edges of 'bbox'; four zeros are how some tools write that there is none."""
    values = labels.field(record, "bbox", list, where, default=[])
    if not any(values):
        return None
    if len(values) != 4:
        raise UserError(f"{where}: 'bbox' must be [x, y, width, height], not {values!r:.60}.")
    x, y, width, height = (labels.number(value, "'bbox'", where) for value in values)
    if width <= 0 or height <= 0:
        raise UserError(
            f"{where}: 'bbox' has the size {width:g}x{height:g}, which must be positive; mend it "
            "or leave 'bbox' out."
        )
    return np.array([x, y, x + width, y + height]) - 0.5


def _area(record: dict[str, Any], where: str) -> float | None:
    if record.get("area") is None:
        return None
    area = labels.number(record["area"], "'area'", where)
    if area < 0:
        raise UserError(f"{where}: 'area' must not be negative, not {area:g}; mend or omit it.")
    return area

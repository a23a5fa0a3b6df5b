"""The layout of the course: a folder and a JSON file for each split.

    ROOT/train/*.png    ROOT/train_annotations.json
    ROOT/cal/*.png      ROOT/cal_annotations.json     (may be missing)
    ROOT/val/*.png      ROOT/val_annotations.json     (may be missing)
    ROOT/test/*.png     ROOT/test_annotations.json    (may be missing)

A file holds `{"images": [{"id", "file_name", "keypoints": [[x, y], …]}, …],
"keypoint_names": […], "num_keypoints": K}`. A missing point is null or [null, null]; `id`,
`num_keypoints` and an image's `width` and `height` are optional, and any other field of an image
can be named by `data.split.group_by`. Without it every picture is a group of its own.

A whole number is a pixel's centre, as in drawings made with Pillow: `data.pixel_center=0.0`.
"""

import pathlib
from typing import Any

import numpy as np

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import images, labels
from input_pipeline.instances import Instance, assemble
from input_pipeline.records import Records

SPLITS = ("train", "cal", "val", "test")


def read(config: DataConfig) -> Records:
    """Reads all splits that are there.

    Args:
      config: `root` is the folder described above.

    Returns:
      One row per picture; `splits` is 'train', 'cal', 'val' or 'test'.

    Raises:
      UserError: if train is missing, or for anything wrong with a label file or a picture.
    """
    root = labels.root_folder(config, "train/ and train_annotations.json")
    names: tuple[str, ...] = ()
    instances: list[Instance] = []
    for split in SPLITS:
        path = root / f"{split}_annotations.json"
        if split == "train" or path.exists():
            split_names, rows = _read_split(path, split, config)
            if names and split_names != names:
                raise UserError(
                    f"{path} names the keypoints {', '.join(split_names)}, but the training file "
                    f"{', '.join(names)}; all splits need the same names in the same order."
                )
            names = split_names
            instances += rows
    return assemble(KeypointSet(names), instances, config, str(root))


def _read_split(
    path: pathlib.Path, split: str, config: DataConfig
) -> tuple[tuple[str, ...], list[Instance]]:
    """Reads one label file; returns the keypoint names and the instances."""
    content = labels.load_json(path)
    names = labels.keypoint_names(
        labels.field(content, "keypoint_names", list, str(path)), str(path)
    )
    count = labels.field(content, "num_keypoints", int, str(path), default=len(names))
    if count != len(names):
        raise UserError(
            f"{path} states num_keypoints={count} but lists {len(names)} keypoint_names; mend one."
        )
    records = labels.field(content, "images", list, str(path))
    if not records:
        raise UserError(f"{path} lists no images; add some or remove the file.")
    wheres = [f"{path}, images[{i}]" for i in range(len(records))]
    files = [
        labels.field(record, "file_name", str, where)
        for record, where in zip(records, wheres, strict=True)
    ]
    folder = path.parent / split
    paths = [
        images.safe_path(folder, name, where) for name, where in zip(files, wheres, strict=True)
    ]
    labels.check_unique((p.relative_to(folder).as_posix() for p in paths), "file name", str(path))
    ids = [str(record["id"]) for record in records if record.get("id") is not None]
    labels.check_unique(ids, "image id", str(path))
    ranks = labels.natural_ranks(files)
    instances = []
    for record, file, picture, place in zip(records, files, paths, wheres, strict=True):
        where = f"{place} ({file})"
        keypoints, labelled = _keypoints(record, names, where)
        name = f"{split}/{file}"
        instances.append(
            Instance(
                where=where,
                id=name,
                file=picture,
                group=labels.group(record, config.split.group_by, name, where),
                order=ranks[file],
                keypoints=keypoints,
                labelled=labelled,
                split=split,
                declared_size=labels.declared_size(record, where),
            )
        )
    return names, instances


def _keypoints(
    record: dict[str, Any], names: tuple[str, ...], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns coordinates [K, 2] and labelled [K] of one image."""
    values = labels.field(record, "keypoints", list, where)
    if len(values) != len(names):
        raise UserError(
            f"{where} has {len(values)} keypoints instead of {len(names)} ({', '.join(names)}); "
            "write null for a missing one."
        )
    keypoints = np.zeros((len(names), 2))
    labelled = np.zeros(len(names), bool)
    for k, (name, value) in enumerate(zip(names, values, strict=True)):
        if value is None or value == [None, None]:
            continue
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(
                f"{where}: the keypoint {name!r} must be [x, y] or null, not {value!r:.60}."
            )
        what = f"the keypoint {name!r} (x, y)"
        keypoints[k] = [labels.number(coordinate, what, where) for coordinate in value]
        labelled[k] = True
    return keypoints, labelled

"""Stick figures that draw themselves: 1,400 grey pictures of 128 × 128 pixels with five points.

Nothing is downloaded. A picture is a pure function of its variant, split and index, the same on
every machine: random numbers come from PCG64 seeded with those integers, sines and cosines from
`math` (NumPy's vector versions differ by processor), and arrays only see +, ×, sqrt and clip.

Left and right are those of the picture: the left foot has the smaller x. The two variants differ
in the arms alone; body, background, clutter and noise of a picture are the same in both.

- `own_side`: each arm swings ±60° about the horizontal on its own side, so that the left hand is
  always left of the shoulder and every order-aware score can reach 1.
- `free`: both arms hang from one shoulder and swing ±60° about the vertical, independently. Which
  of the two is called left is random and cannot be seen. At best one hand of two is right where
  they are further apart than twice the tolerance, so PCK@0.05 has a ceiling near 0.86.
"""

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from heatmap import geometry
from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import host
from input_pipeline.meaning import with_config
from input_pipeline.records import Records

SIZE = (128, 128)
COUNTS = {"train": 1000, "validation": 200, "test": 200}
ARMS = ("own_side", "free")

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # TFDS' names -> ours
_SEED = 20260117  # another number is another data set: raise the version with it

# The figure at scale 1, in pixels from its middle, y down. At scale 1.3 and 15 pixels off the
# centre of the picture, the ends of all strokes still lie 2 pixels inside its edges.
_HEAD, _HEAD_RADIUS, _SHOULDER, _HIP, _FEET, _ARM = -28.0, 7.0, -15.0, 4.0, 35.0, 20.0

Point = tuple[float, float]


def points(arms: str) -> KeypointSet:
    """Says what the five points of a variant mean.

    The hands count as interchangeable in both variants, so that the two can be compared on the
    unordered scores too. The OKS sigmas are 0.05 for all points, a little below COCO's wrists
    (0.062): a stroke's end is a sharper place than a joint.
    """
    return KeypointSet(
        names=("head", "left_hand", "right_hand", "left_foot", "right_foot"),
        skeleton=((0, 1), (0, 2), (0, 3), (0, 4)),
        flip_pairs=((1, 2), (3, 4)),
        interchangeable_pairs=((1, 2),),
        torso=((0,), (3, 4)),
        oks_sigmas=(0.05,) * 5,
        order_known=arms == "own_side",
    )


def draw(arms: str, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one picture.

    Args:
      arms: a variant of `ARMS`.
      split: TFDS' name of the split, a key of `COUNTS`.
      index: the number of the picture in its split, from 0.

    Returns:
      image [128, 128, 1] uint8 and keypoints [5, 2] float32, pixels.
    """
    rng = np.random.Generator(np.random.PCG64([_SEED, list(COUNTS).index(split), index]))

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * rng.random()

    scale = uniform(0.7, 1.3)
    x, y = (63.5 + uniform(-15.0, 15.0) for _ in range(2))
    swings = [math.radians(uniform(-60.0, 60.0)) for _ in range(2)]
    half_spread = uniform(10.0, 30.0) / 2
    width = uniform(1.0, 3.0)
    ground = uniform(200.0, 255.0)
    contrast = uniform(0.0, 80.0) - ground  # ink on paper

    image = np.full(SIZE, ground)
    for _ in range(int(rng.random() * 5)):
        ends = [(uniform(-0.5, 127.5), uniform(-0.5, 127.5)) for _ in range(2)]
        clutter = np.zeros(SIZE)
        _stroke(clutter, ends[0], ends[1], uniform(1.0, 3.0))
        image += clutter * (contrast * uniform(0.1, 0.3))  # too faint to be taken for a limb

    def place(dx: float, dy: float) -> Point:
        return x + scale * dx, y + scale * dy

    hands = [place(dx, _SHOULDER + dy) for dx, dy in _arms(arms, swings)]
    feet = [place(-half_spread, _FEET), place(half_spread, _FEET)]
    head, shoulder, hip = place(0.0, _HEAD), place(0.0, _SHOULDER), place(0.0, _HIP)
    figure = np.zeros(SIZE)
    _ring(figure, head, scale * _HEAD_RADIUS, width)
    _stroke(figure, place(0.0, _HEAD + _HEAD_RADIUS), hip, width)
    for start, end in [(shoulder, hand) for hand in hands] + [(hip, foot) for foot in feet]:
        _stroke(figure, start, end, width)
    image += figure * (ground + contrast - image)

    image += uniform(0.0, 15.0) * rng.standard_normal(SIZE)
    pixels = np.rint(np.clip(image, 0.0, 255.0)).astype(np.uint8)
    return pixels[..., None], np.array([head, *hands, *feet], np.float32)


def _arms(arms: str, swings: Sequence[float]) -> list[Point]:
    """Returns (dx, dy) from the shoulder to the left and the right hand, at scale 1."""
    if arms == "free":
        return [(_ARM * math.sin(a), _ARM * math.cos(a)) for a in swings]
    return [
        (side * _ARM * math.cos(a), _ARM * math.sin(a))
        for side, a in zip((-1.0, 1.0), swings, strict=True)
    ]


def _stroke(coverage: np.ndarray, start: Point, end: Point, width: float) -> None:
    """Adds a soft-edged segment with round ends to a coverage map [H, W], in place."""
    px, py, window = _window(coverage, (start, end), width)
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    px, py = px - along * dx, py - along * dy
    _cover(window, np.sqrt(px * px + py * py), width)


def _ring(coverage: np.ndarray, centre: Point, radius: float, width: float) -> None:
    """Adds a soft-edged circle line to a coverage map [H, W], in place."""
    px, py, window = _window(coverage, (centre,), 2 * radius + width)
    _cover(window, np.abs(np.sqrt(px * px + py * py) - radius), width)


def _cover(window: np.ndarray, distance: np.ndarray, width: float) -> None:
    """Takes the larger of what is there and a line's coverage at `distance` from its middle."""
    np.maximum(window, np.clip(0.5 + width / 2 - distance, 0.0, 1.0), out=window)


def _window(
    coverage: np.ndarray, around: Sequence[Point], width: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x [w] and y [h, 1], from the first point, and a view, of what a line can touch."""
    parts, offsets = [], []
    for axis, size in ((1, coverage.shape[0]), (0, coverage.shape[1])):
        values = [point[axis] for point in around]
        low = math.floor(min(values) - width / 2 - 1)
        high = math.ceil(max(values) + width / 2 + 1)
        parts.append(slice(max(low, 0), min(high, size - 1) + 1))
        offsets.append(np.arange(parts[-1].start, parts[-1].stop) - values[0])
    return offsets[1], offsets[0][:, None], coverage[parts[0], parts[1]]


class StickFigures(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder, so that `tfds.load('stick_figures/free')` works as for any data set."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS reads a list
        tfds.core.BuilderConfig(name=arms, description=f"Arms: {arms}.") for arms in ARMS
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(*SIZE, 1), dtype=np.uint8),
                    "keypoints": tfds.features.Tensor(shape=(5, 2), dtype=np.float32),
                    "index": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(COUNTS[split]):
            image, keypoints = draw(self.builder_config.name, split, index)
            yield index, {"image": image, "keypoints": keypoints, "index": index}


def read(config: DataConfig) -> Records:
    """Reads all stick figures of a variant, and draws them the first time.

    Args:
      config: `root` is the TFDS folder ('' = TFDS' default), `arms` the variant.

    Returns:
      1,400 records sorted by id, always grey. Boxes are the points' extent, grown by a tenth.

    Raises:
      UserError: if the folder cannot be written to.
    """
    builder = _prepared(config.root, config.arms)
    parts = {s: tfds.as_numpy(builder.as_dataset(split=s, batch_size=-1)) for s in COUNTS}
    pixels, keypoints, index = (
        np.concatenate([part[name] for part in parts.values()])
        for name in ("image", "keypoints", "index")
    )
    splits = np.concatenate([[_SPLITS[s]] * count for s, count in COUNTS.items()])
    ids = np.array([f"{s}/{i:05d}" for s, i in zip(splits, index, strict=True)])
    extents = np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1)
    boxes = geometry.pad_box(extents, 1.1)
    count = len(ids)
    records = Records(
        points=with_config(points(config.arms), config),
        ids=ids,
        instances=np.zeros(count, np.int32),
        groups=ids,
        order=index.astype(np.int64),
        splits=splits,
        keypoints=keypoints.astype(np.float64),
        labelled=np.ones((count, 5), bool),
        boxes=boxes,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        sizes=np.tile(np.array(SIZE, np.int32), (count, 1)),
        files=np.full(count, ""),
        orientations=np.ones(count, np.int32),
        pixels=pixels,
    )
    return records.take(np.argsort(ids))  # TFDS stores them in an order of its own


def _prepared(root: str, arms: str) -> StickFigures:
    """Opens the TFDS folder of a variant, written first if it is not there yet.

    TFDS writes to a folder of a random name and renames it. Of two processes that do so at once,
    the slower one fails at the rename, and can read what the faster one has written.
    """
    host.load()  # before TFDS does
    data_dir = os.path.expanduser(root) or None
    tfds.disable_progress_bar()
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = StickFigures(config=arms, data_dir=data_dir)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads
            builder.download_and_prepare(download_config=offline)
    except OSError as error:
        if not os.path.isdir(builder.data_dir):
            raise UserError(
                f"The stick figures cannot be written to {builder.data_dir} ({error}); set "
                "--config.data.root to a folder that can be written to."
            ) from error
    return StickFigures(config=arms, data_dir=data_dir)

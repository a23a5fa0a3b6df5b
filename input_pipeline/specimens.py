"""Specimens that draw themselves: beetles cut from 147 trays, each with a habit of its annotator.

Nothing is downloaded. A tray holds four to six beetles of one species with closed wings; each is a
picture of 96 × 96 pixels with the ends of two lines, as in `beetles`, and the tray's scale is
known. Labels are what an annotator marks: either end of a line comes first, each point is off by a
little at random, and all points of a tray are off alike, by where the cursor's tip is thought to be
and by how far outside an edge one clicks. So errors within a tray go together, which makes the tray
the group, and no network can know what the annotator of a new tray does.

A tray is a function of its series and number. Random numbers come from PCG64 seeded with those
integers, and labels are rounded to hundredths of a pixel: they are the same on every machine, and
so is the split's hash. The polygons of the pictures are filled by Pillow, whose versions may differ
in single pixels. Drawing all trays takes two seconds, so nothing is stored; `specimen_files` writes
those to test with as files.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from heatmap import geometry
from heatmap.config import DataConfig
from input_pipeline import beetles
from input_pipeline.meaning import with_config
from input_pipeline.records import Records
from input_pipeline.trays import PER_TRAY, draw_tray

SIZE = (96, 96)
TRAYS = {"train": 60, "val": 12, "cal": 45, "test": 30}

_SEED = 20261123  # another number is another data set
_COUNTS = (4, 6)  # specimens of a tray, at least and at most
_SPECIES = 20
_PX_PER_CM = (50.0, 80.0)

# How an annotator errs, standard deviations in pixels: each coordinate of each point by itself; all
# points of a tray by one vector; and the ends of all its lines outwards, which makes them longer.
_HAND, _CURSOR, _OUTWARDS = 0.25, 0.4, 0.7


@dataclasses.dataclass(frozen=True)
class Specimens:
    """The n specimens of a tray.

    Attributes:
      pixels: uint8 [n, 96, 96, 3].
      ends: [n, 4, 2] (x, y), where the lines of `beetles.POINTS` end.
      keypoints: [n, 4, 2], where the annotator says that they do.
      px_per_cm: of the tray.
    """

    pixels: np.ndarray
    ends: np.ndarray
    keypoints: np.ndarray
    px_per_cm: float


def draw(series: int, number: int) -> Specimens:
    """Draws a tray and has it annotated.

    Args:
      series: 0 … 3 are the splits of the data set in the order of `TRAYS`; trays of any other
        series are no part of it.
      number: of the tray in its series.
    """
    rng = np.random.Generator(np.random.PCG64([_SEED, series, number]))
    count = int(rng.integers(_COUNTS[0], _COUNTS[1] + 1))
    looks = [int(rng.integers(_SPECIES))] * count
    px_per_cm = round(float(rng.uniform(*_PX_PER_CM)), 1)
    cell = SIZE[0]
    tray = draw_tray([_SEED, series, number], looks, cell, px_per_cm, spread=set())
    corners = [cell * np.array(divmod(place, PER_TRAY[0]))[::-1] for place in range(count)]
    pixels = [tray.pixels[y : y + cell, x : x + cell] for x, y in corners]
    lines = np.array([[beetle.width_line, beetle.length_line] for beetle in tray.beetles])
    lines -= np.array(corners)[:, None, None]  # [n, 2 lines, 2 ends, 2]
    return Specimens(
        pixels=np.stack(pixels),
        ends=lines.reshape(count, 4, 2),
        keypoints=_annotated(lines, rng).reshape(count, 4, 2),
        px_per_cm=px_per_cm,
    )


def _annotated(lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Marks the ends of lines [n, 2, 2, 2] as one person does on one tray."""
    along = lines[:, :, 1] - lines[:, :, 0]
    outwards = along / np.sqrt((along**2).sum(axis=-1, keepdims=True))
    beyond = outwards * (_OUTWARDS * rng.standard_normal(2))[:, None]  # each kind of line its own
    marked = lines + np.stack([-beyond, beyond], axis=2)
    marked += _CURSOR * rng.standard_normal(2) + _HAND * rng.standard_normal(lines.shape)
    turned = rng.random(lines.shape[:2]) < 0.5
    marked = np.where(turned[..., None, None], marked[:, :, ::-1], marked)
    return marked.round(2)


def records(trays: Mapping[str, Specimens], config: DataConfig) -> Records:
    """Lays specimens out as a reader does.

    Args:
      trays: by name, SPLIT/NAME.
      config: that may change what the points mean.

    Returns:
      A record for each specimen; its group is the tray.
    """
    counts = [len(tray.pixels) for tray in trays.values()]
    groups = np.repeat(list(trays), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    keypoints = np.concatenate([tray.keypoints for tray in trays.values()])
    extents = np.concatenate([keypoints.min(axis=1), keypoints.max(axis=1)], axis=1)
    boxes = geometry.pad_box(extents, 1.1)
    total = len(groups)
    return Records(
        points=with_config(beetles.POINTS, config),
        ids=np.array([f"{group}-{i + 1}" for group, i in zip(groups, place, strict=True)]),
        instances=np.zeros(total, np.int32),
        groups=groups,
        order=place.astype(np.int64),
        splits=np.array([group.split("/")[0] for group in groups]),
        keypoints=keypoints,
        labelled=np.ones(keypoints.shape[:2], bool),
        boxes=boxes,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1),
        sizes=np.tile(np.array(SIZE, np.int32), (total, 1)),
        files=np.full(total, ""),
        orientations=np.ones(total, np.int32),
        px_per_cm=np.repeat([tray.px_per_cm for tray in trays.values()], counts),
        pixels=np.concatenate([tray.pixels for tray in trays.values()]),
    )


def draw_split(split: str) -> dict[str, Specimens]:
    """Draws the trays of a split, by name."""
    series = list(TRAYS).index(split)
    return {f"{split}/{number:02d}": draw(series, number) for number in range(TRAYS[split])}


def read(config: DataConfig) -> Records:
    """Draws the whole data set.

    Args:
      config: that may change what the points mean.

    Returns:
      A record for each specimen, each of which names its split.
    """
    trays = {name: tray for split in TRAYS for name, tray in draw_split(split).items()}
    return records(trays, config)

"""Labelled animals for tests of the checks: a body seen from above, anywhere, turned any way."""

import dataclasses

import numpy as np

from heatmap import geometry
from heatmap.keypoints import KeypointSet
from input_pipeline import stick_figures
from input_pipeline.records import Records
from tests.test_batching import make_records

POINTS = KeypointSet(
    ("nose", "left_ear", "right_ear", "left_hip", "right_hip", "tail"),
    flip_pairs=((1, 2), (3, 4)),
)
BODY = np.array([[0, -40], [-15, -22], [15, -22], [-18, 20], [18, 20], [0, 40.0]])
SIZE = (480, 640)


def herd(count: int = 80, seed: int = 0, turned: bool = True, bend: float = 3.0) -> Records:
    """Draws labels: a body of about 80 px, its points a few px off, in pictures of noise."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, count) if turned else rng.normal(0, 0.1, count)
    scale = rng.uniform(0.8, 1.25, count)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    body = BODY + rng.normal(0, bend, (count, *BODY.shape))
    place = rng.normal((320, 240), 30, (count, 2))
    keypoints = scale[:, None, None] * (body @ turn.transpose(2, 0, 1)) + place[:, None]
    return with_points(make_records(count, 1, (12, 16)), keypoints, POINTS, SIZE)


def with_points(records: Records, keypoints, points: KeypointSet, size) -> Records:
    """Puts other labels into records, those of pictures of another size."""
    return dataclasses.replace(
        records,
        points=points,
        keypoints=keypoints,
        labelled=np.ones(keypoints.shape[:2], bool),
        sizes=np.tile(np.array(size, np.int32), (len(records), 1)),
        boxes=np.tile(geometry.image_box(size), (len(records), 1)),
    )


def figures(count: int = 120, arms: str = "own_side") -> Records:
    """Draws the first stick figures, without TFDS."""
    drawn = [stick_figures.draw(arms, "train", i) for i in range(count)]
    pixels, keypoints = (np.stack(part) for part in zip(*drawn, strict=True))
    records = make_records(count, 1, stick_figures.SIZE, pixels=pixels)
    points = stick_figures.points(arms)
    return with_points(records, keypoints.astype(np.float64), points, stick_figures.SIZE)


def exchanged(records: Records, rows, pairs) -> Records:
    """Swaps the labels of pairs in some rows."""
    keypoints = records.keypoints.copy()
    for a, b in pairs:
        keypoints[np.ix_(rows, [a, b])] = keypoints[np.ix_(rows, [b, a])]
    return dataclasses.replace(records, keypoints=keypoints)

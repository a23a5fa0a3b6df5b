"""Predictions that the tests of metrics share: built by hand, or drawn."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from configs import common
from heatmap import metrics
from heatmap.config import from_mapping
from heatmap.keypoints import KeypointSet, involution

POINTS = KeypointSet(
    names=("nose", "left_hand", "right_hand", "left_foot", "right_foot"),
    interchangeable_pairs=((1, 2), (3, 4)),
    torso=((0,), (3, 4)),
    oks_sigmas=(0.03, 0.06, 0.05, 0.09, 0.1),
    measurements=(("arms", 1, 2), ("side", 0, 3)),
)
UNSEEN = dataclasses.replace(POINTS, order_known=False)
ORDERED = dataclasses.replace(POINTS, interchangeable_pairs=())
CONFIG = from_mapping(common.get_config().to_dict()).eval
SEEDS = st.integers(0, 2**32 - 1)


def build(predicted, truth, weight=None, **columns) -> metrics.Predictions:
    """Fills the columns that a test does not care about."""
    predicted, truth = np.asarray(predicted, float), np.asarray(truth, float)
    n, k, _ = truth.shape
    weight = np.ones((n, k)) if weight is None else np.asarray(weight, float)
    values = {
        "ids": np.array([f"image{i}" for i in range(n)], dtype=str),
        "instances": np.zeros(n, int),
        "groups": np.array([""] * n, dtype=str),
        "score": np.full((n, k), np.nan),
        "entropy": np.full((n, k), np.nan),
        "height": np.full((n, k), np.nan),
        "boxes": np.tile([0.0, 0.0, 100.0, 100.0], (n, 1)),
        "areas": np.full(n, 5000.0),
        "sizes": np.tile([120, 160], (n, 1)),
        "px_per_cm": np.full(n, 50.0),
        "species": np.array([""] * n, dtype=str),
        "dataset": np.array([""] * n, dtype=str),
    }
    return metrics.Predictions(predicted=predicted, truth=truth, weight=weight, **values | columns)


def random(seed: int, n: int = 12, images: int = 5, labelled: float = 0.8) -> metrics.Predictions:
    """Draws instances that share pictures, with unlabelled points and pairs predicted crosswise."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 100, (n, POINTS.count, 2))
    predicted = truth + rng.normal(size=truth.shape) * rng.choice([1.0, 4.0, 12.0], (n, 1, 1))
    crosswise = rng.random(n) < 0.4
    predicted[crosswise] = predicted[crosswise][
        :, involution(POINTS.count, POINTS.interchangeable_pairs)
    ]
    ids = np.array([f"image{i}" for i in rng.integers(0, images, n)])
    return build(
        predicted,
        truth,
        rng.random((n, POINTS.count)) < labelled,
        ids=ids,
        instances=np.array([np.sum(ids[:i] == ids[i]) for i in range(n)]),
        score=rng.random((n, POINTS.count)),
        areas=rng.uniform(500, 8000, n),
        sizes=rng.integers(100, 200, (n, 2)),
        boxes=np.sort(rng.uniform(0, 100, (n, 2, 2)), axis=1).reshape(n, 4),
    )


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-9, err_msg=key)

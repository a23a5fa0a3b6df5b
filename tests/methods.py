"""Methods of a report made of arrays, without training."""

import pathlib

import numpy as np

from heatmap.keypoints import KeypointSet
from heatmap.predictions import Predictions
from heatmap.report import methods
from heatmap.report.findings import LogLine, Method
from tests.helpers import make_config

POINTS = KeypointSet(names=("nose", "left", "right"), interchangeable_pairs=((1, 2),))
BLIND = KeypointSet(POINTS.names, interchangeable_pairs=((1, 2),), order_known=False)


def figures(count: int, seed: int = 0) -> np.ndarray:
    """True points [N, 3, 2] whose extent is exactly 100 px, the diagonal of 60 × 80."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (count, 1, 2))
    inside = rng.uniform(0, 1, (count, 1, 2)) * [60, 80]
    return corner + np.concatenate(
        [inside, np.zeros((count, 1, 2)), np.tile([[[60.0, 80.0]]], (count, 1, 1))], axis=1
    )


def method(
    name: str,
    truth: np.ndarray,
    predicted: np.ndarray,
    score: np.ndarray | None = None,
    points: KeypointSet = POINTS,
    weight: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    log: tuple[LogLine, ...] = (),
    **settings,
) -> Method:
    """A method whose predictions [N, K, 2] stand beside their truth."""
    n, k = truth.shape[:2]
    unknown = np.full((n, k), np.nan)
    predictions = Predictions(
        ids=np.array([f"{i}.png" for i in range(n)]),
        instances=np.zeros(n, int),
        groups=np.array([f"g{i}" for i in range(n)]) if groups is None else groups,
        predicted=predicted,
        score=unknown if score is None else score,
        entropy=unknown if score is None else -score,
        height=unknown,
        truth=truth,
        weight=np.ones((n, k)) if weight is None else weight,
        boxes=np.full((n, 4), np.nan),
        areas=np.full(n, np.nan),
        sizes=np.full((n, 2), np.nan),
        px_per_cm=np.full(n, np.nan),
        species=np.full(n, ""),
        dataset=np.full(n, ""),
    )
    config = make_config(**settings)
    return methods.describe(name, pathlib.Path(name), config, points, {}, log, predictions)


def off_by(truth: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Predictions that lie so many pixels [N, K] to the right of the truth."""
    return truth + np.stack([distances, np.zeros_like(distances)], axis=-1)

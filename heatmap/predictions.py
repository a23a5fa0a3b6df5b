"""Predicted points beside labelled ones, their distances, and how distances are summed up.

What every measure of `heatmap.metrics` builds on.
"""

import dataclasses

import numpy as np

from heatmap.keypoints import KeypointSet
from heatmap.pairs import cheaper_order, distance


@dataclasses.dataclass(frozen=True)
class Predictions:
    """N instances with K points each, in pixels of the original picture.

    Attributes:
      ids: [N] str, the picture; several instances may share it.
      instances: [N] int, the number of the instance in its picture.
      groups: [N] str, video, specimen or tray.
      predicted: [N, K, 2] (x, y).
      score: [N, K] confidence, NaN where the decoder has none.
      entropy: [N, K] nats, NaN where the decoder has none.
      height: [N, K] the map's largest value, NaN where there is none.
      truth: [N, K, 2] (x, y); any value where not labelled.
      weight: [N, K], positive where labelled, else 0.
      boxes: [N, 4] edges (x0, y0, x1, y1) of the instance.
      areas: [N] px², the scale of OKS.
      sizes: [N, 2] (height, width) of the picture.
      px_per_cm: [N], NaN where the picture's scale is not known.
      species: [N] str, or ''.
      dataset: [N] str, the data set in a mixture, or ''.
    """

    ids: np.ndarray
    instances: np.ndarray
    groups: np.ndarray
    predicted: np.ndarray
    score: np.ndarray
    entropy: np.ndarray
    height: np.ndarray
    truth: np.ndarray
    weight: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    px_per_cm: np.ndarray
    species: np.ndarray
    dataset: np.ndarray

    def __post_init__(self):
        n, k = self.weight.shape
        shapes = {"predicted": (n, k, 2), "truth": (n, k, 2), "score": (n, k), "entropy": (n, k)}
        shapes |= {"height": (n, k)}
        shapes |= {"ids": (n,), "instances": (n,), "groups": (n,), "areas": (n,)}
        shapes |= {"boxes": (n, 4), "sizes": (n, 2)}
        shapes |= {"px_per_cm": (n,), "species": (n,), "dataset": (n,)}
        for name, shape in shapes.items():  # a wrong one would broadcast without a word
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")

    def take(self, rows) -> "Predictions":
        """Returns the instances of these rows (indices or a mask)."""
        fields = dataclasses.fields(self)
        return Predictions(**{field.name: getattr(self, field.name)[rows] for field in fields})


def interchange(predictions: Predictions, points: KeypointSet) -> Predictions:
    """Puts the truth of interchangeable pairs into the order that suits the predictions better."""
    truth, weight = cheaper_order(
        predictions.predicted, predictions.truth, predictions.weight, points.interchangeable_pairs
    )
    return dataclasses.replace(predictions, truth=truth, weight=weight)


def point_errors(predictions: Predictions) -> np.ndarray:
    """Returns [N, K] px, infinite where a prediction is lost, NaN where not labelled."""
    errors = distance(predictions.predicted, predictions.truth)
    return np.where(predictions.weight > 0, errors, np.nan)


def mean(values: np.ndarray) -> float:
    """Averages what is not NaN, without a warning where nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else np.nan


def summary(key: str, errors: np.ndarray) -> dict[str, float]:
    """Describes errors by mean, median, 95th percentile, maximum and root of the mean square.

    Args:
      key: the name of the mean; the others follow it after a slash.
      errors: any shape; NaN counts as not there.
    """
    ordered = np.sort(errors[~np.isnan(errors)])
    return {
        key: mean(ordered),
        f"{key}/median": _quantile(ordered, 0.5),
        f"{key}/p95": _quantile(ordered, 0.95),
        f"{key}/max": _quantile(ordered, 1.0),
        f"{key}/rmse": float(np.sqrt(mean(ordered**2))),
    }


def _quantile(ordered: np.ndarray, q: float) -> float:
    """Interpolates as np.quantile does, and also beside infinite values (there NumPy says NaN)."""
    if not ordered.size:
        return np.nan
    position = q * (ordered.size - 1)
    low, high = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
    return float(low if low == high else low + (position - np.floor(position)) * (high - low))

"""Where an error comes from: target and decoder, resize, rounded labels, and the model."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from heatmap import decoding, geometry, targets
from heatmap.config import Config
from heatmap.fields import choose
from heatmap.losses import LOSSES
from heatmap.predictions import Predictions, interchange, mean
from heatmap.report.accuracy import right
from heatmap.report.findings import (
    DECODING,
    REMAINDER,
    RESIZE,
    ROUNDING,
    UNORDERED,
    Budget,
    BudgetPart,
    Method,
)

_BATCH = 64
_LEAST_LOG = 1e-30  # a target's tail, of which a logarithm is taken
_LEAST_TO_TELL = 20  # coordinates: fewer may be whole numbers by chance
_SAME_FRACTION = 1e-4
# A label rounded to whole pixels is uniform on a square of side 1 about the true place: the mean
# square of its distance is 2/12, and half the square lies within √(1/2π) of its middle.
_ROUNDING_RMSE, _ROUNDING_MEDIAN = math.sqrt(1 / 6), math.sqrt(1 / (2 * math.pi))


def measure(
    method: Method, input_from_original: np.ndarray, order: str, threshold: float
) -> tuple[Budget, Budget]:
    """Divides a method's error into its sources.

    The parts are taken to be independent with a mean of zero, so that their squares add; what
    they leave of the total is the model's. That is an estimate: a model trained on quantised
    targets may undo a part of their error.

    Args:
      method: with N instances.
      input_from_original: [N, 3, 3] of each instance, without augmentation.
      order: ORDERED or UNORDERED.
      threshold: within which a point is right.

    Returns:
      Of all points with a finite error, and of those that are right.
    """
    predictions = method.predictions
    if order == UNORDERED:
        predictions = interchange(predictions, method.points)
    labelled = predictions.weight > 0
    original = np.where(labelled[..., None], predictions.truth, 0.0)
    exact = geometry.apply(input_from_original, original)
    stored = exact.astype(np.float32)  # as batches hold them
    back = geometry.invert(input_from_original)
    returned = geometry.apply(back, stored.astype(np.float64))
    decoded = geometry.apply(back, read_targets(method.config, stored).astype(np.float64))
    distances = {
        DECODING: np.linalg.norm(decoded - returned, axis=-1),
        RESIZE: np.linalg.norm(returned - original, axis=-1),
    }
    errors = method.errors_in(order)
    stride = _stride(method.config, input_from_original)
    rounded = labels_are_rounded(predictions)
    everything = labelled & np.isfinite(errors)
    near = right(method, order, threshold) == 1
    return (
        _budget(method.name, False, errors[everything], distances, everything, rounded, stride),
        _budget(method.name, True, errors[near], distances, near, rounded, stride),
    )


def read_targets(config: Config, keypoints: np.ndarray) -> np.ndarray:
    """Encodes true points as a run's targets and decodes those as its predictions are decoded.

    Args:
      config: of the run.
      keypoints: [N, K, 2] float32 in input pixels.

    Returns:
      [N, K, 2] float32 in input pixels: what a perfect model would give.
    """
    kind = choose(LOSSES, config.loss.name, "loss.name").trains

    @jax.jit
    def through(points):
        if kind == "coordinates":
            perfect = geometry.normalise(points, config.data.image_size, jnp)
        else:
            perfect = targets.render(jnp, points, config)
        if kind == "logits":
            perfect = jnp.log(jnp.maximum(perfect, _LEAST_LOG))
        return decoding.decode(config, perfect).keypoints

    count = len(keypoints)
    padded = np.concatenate([keypoints, np.repeat(keypoints[-1:], -count % _BATCH, axis=0)])
    parts = [through(padded[i : i + _BATCH]) for i in range(0, len(padded), _BATCH)]
    return np.concatenate(parts)[:count]


def labels_are_rounded(predictions: Predictions) -> bool:
    """Says whether all labels have the same fraction of a pixel, and so were whole numbers."""
    known = predictions.truth[predictions.weight > 0]  # [n, 2]
    if known.size < _LEAST_TO_TELL:
        return False
    apart = known - known[0]
    return bool((np.abs(apart - np.round(apart)) < _SAME_FRACTION).all())


def _stride(config: Config, input_from_original: np.ndarray) -> tuple[float, float]:
    """Returns the extent (x, y) of a heatmap pixel in original pixels, NaN without maps."""
    if choose(LOSSES, config.loss.name, "loss.name").trains == "coordinates":
        return math.nan, math.nan
    scale = np.linalg.norm(input_from_original[:, :2, :2], axis=1)  # [N, 2], across and down
    size, maps = config.data.image_size, config.targets.heatmap_size
    x, y = np.median(1 / scale, axis=0) * (size[1] / maps[1], size[0] / maps[0])
    return float(x), float(y)


def _budget(
    name: str,
    only_right: bool,
    errors: np.ndarray,
    distances: dict[str, np.ndarray],
    counted: np.ndarray,
    rounded: bool,
    stride: tuple[float, float],
) -> Budget:
    total = mean(errors**2)
    squares = {part: (mean(d[counted] ** 2), _median(d[counted])) for part, d in distances.items()}
    if rounded:
        squares[ROUNDING] = (_ROUNDING_RMSE**2, _ROUNDING_MEDIAN)
    left = max(total - sum(square for square, _ in squares.values()), 0.0)
    squares[REMAINDER] = (left, math.nan)
    parts = tuple(
        BudgetPart(part, math.sqrt(square), median, square / total if total > 0 else math.nan)
        for part, (square, median) in squares.items()
    )
    return Budget(
        method=name,
        only_right=only_right,
        count=errors.size,
        rmse=math.sqrt(total),
        median=_median(errors),
        parts=parts,
        stride=stride,
    )


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else math.nan

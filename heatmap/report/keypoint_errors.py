"""How far and in which direction each keypoint is off."""

import numpy as np

from heatmap.predictions import Predictions, interchange
from heatmap.report import resampling
from heatmap.report.accuracy import Sampling, right
from heatmap.report.findings import UNORDERED, Interval, KeypointErrors, Method


def offsets(method: Method, order: str) -> np.ndarray:
    """Returns [N, K, 2] px, predicted - true; NaN where not labelled or where it is lost."""
    predictions = _in_order(method, order)
    with np.errstate(invalid="ignore"):
        between = predictions.predicted - predictions.truth
    known = (predictions.weight > 0) & np.isfinite(between).all(axis=-1)
    return np.where(known[..., None], between, np.nan)


def measure(
    method: Method, order: str, quoted: tuple[float, ...], sampling: Sampling
) -> tuple[KeypointErrors, ...]:
    """Describes the errors of each keypoint.

    Args:
      method: with K points.
      order: ORDERED or UNORDERED.
      quoted: thresholds of PCK.
      sampling: how to draw.

    Returns:
      K, in the order of the points.
    """
    errors, between = method.errors_in(order), offsets(method, order)
    means = _means(errors, sampling)
    bias_x, bias_y = (_means(between[..., axis], sampling) for axis in (0, 1))
    slopes = _slopes(method, between, order, sampling)
    pck = [_shares(right(method, order, t), sampling) for t in quoted]
    draws = (sampling.level, sampling.seed, sampling.draws)
    return tuple(
        KeypointErrors(
            method=method.name,
            point=name,
            count=int((~np.isnan(errors[:, k])).sum()),
            lost=int(np.isinf(errors[:, k]).sum()),
            mean=means[k],
            median=resampling.quantile(errors[:, k], sampling.groups, 0.5, *draws),
            p95=resampling.quantile(errors[:, k], sampling.groups, 0.95, *draws),
            bias_x=bias_x[k],
            bias_y=bias_y[k],
            slope=slopes[k],
            pck=tuple(at_threshold[k] for at_threshold in pck),
        )
        for k, name in enumerate(method.points.names)
    )


def _in_order(method: Method, order: str) -> Predictions:
    if order == UNORDERED:
        return interchange(method.predictions, method.points)
    return method.predictions


def _slopes(method: Method, between: np.ndarray, order: str, sampling: Sampling) -> list[Interval]:
    """Fits predicted to true coordinates about the means of each keypoint and axis."""
    truth = np.where(np.isnan(between), np.nan, _in_order(method, order).truth)
    columns = []
    for values in (truth, truth + between):
        count = np.maximum((~np.isnan(values)).sum(axis=0), 1)
        columns.append(values - np.nansum(values, axis=0) / count)
    x, y = columns
    above = resampling.sums(np.nansum(x * y, axis=-1), sampling.groups)
    below = resampling.sums(np.nansum(x * x, axis=-1), sampling.groups)
    return _intervals(
        resampling.ratios(above, below, sampling.level, sampling.seed, sampling.draws)
    )


def _means(values: np.ndarray, sampling: Sampling) -> list[Interval]:
    above = resampling.sums(values, sampling.groups)
    below = resampling.sums(~np.isnan(values), sampling.groups)
    return _intervals(
        resampling.ratios(above, below, sampling.level, sampling.seed, sampling.draws)
    )


def _shares(hits: np.ndarray, sampling: Sampling) -> list[Interval]:
    above = resampling.sums(hits, sampling.groups)
    below = resampling.sums(~np.isnan(hits), sampling.groups)
    return _intervals(
        resampling.shares(above, below, sampling.level, sampling.seed, sampling.draws)
    )


def _intervals(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Interval]:
    return [Interval(*map(float, numbers)) for numbers in zip(*found, strict=True)]

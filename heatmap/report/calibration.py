"""Whether the score or the entropy of a map tells how far off its point is."""

import numpy as np

from heatmap.report import resampling
from heatmap.report.accuracy import Sampling, right
from heatmap.report.findings import Calibration, CalibrationBin, Interval, Method

_BINS = 10
_LEAST_IN_BIN = 5


def measure(
    method: Method, order: str, threshold: float, sampling: Sampling
) -> tuple[Calibration, ...]:
    """Sets score and entropy beside the error.

    Args:
      method: whose predictions may have scores and entropies.
      order: ORDERED or UNORDERED.
      threshold: within which a point is right.
      sampling: how to draw.

    Returns:
      One for the score and one for the entropy; nothing for a method without them.
    """
    signals = {"score": method.predictions.score, "entropy": method.predictions.entropy}
    hits, errors = right(method, order, threshold), method.errors_in(order)
    found = []
    for name, values in signals.items():
        counted = ~np.isnan(values) & ~np.isnan(hits)
        if not counted.any():
            continue
        groups = np.broadcast_to(sampling.groups[:, None], counted.shape)[counted]
        signal, error, hit = values[counted], errors[counted], hits[counted]
        correlation = resampling.rank_correlation(
            signal, error, groups, sampling.level, sampling.seed
        )
        bins = tuple(
            _describe(signal[chosen], error[chosen], hit[chosen], groups[chosen], sampling)
            for chosen in _equal_counts(signal)
        )
        found.append(Calibration(method.name, name, bins, correlation, threshold))
    return tuple(found)


def _equal_counts(signal: np.ndarray) -> list[np.ndarray]:
    """Divides [n] values into at most ten bins of about equal counts, equal values together."""
    count = max(1, min(_BINS, signal.size // _LEAST_IN_BIN))
    edges = np.unique(np.quantile(signal, np.arange(1, count) / count))
    place = np.searchsorted(edges, signal, side="right")
    return [np.flatnonzero(place == i) for i in np.unique(place)]


def _describe(
    signal: np.ndarray, error: np.ndarray, hit: np.ndarray, groups: np.ndarray, sampling: Sampling
) -> CalibrationBin:
    above = resampling.sums(hit[:, None], groups)
    below = resampling.sums(np.ones((hit.size, 1)), groups)
    share = resampling.shares(above, below, sampling.level, sampling.seed, sampling.draws)
    return CalibrationBin(
        low=float(signal.min()),
        high=float(signal.max()),
        count=int(signal.size),
        mean=float(signal.mean()),
        median_error=float(np.median(error)),
        right=Interval(*(float(number[0]) for number in share)),
    )

"""PCK over thresholds, its ceiling, and tests of one method against another."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from heatmap.pairs import order_ceiling
from heatmap.report import resampling
from heatmap.report.findings import Band, Curve, Interval, Method, PairedTest


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How intervals and tests are drawn.

    Attributes:
      groups: [N] int, the independent unit of each row, from 0.
      level: of intervals, such as 0.95.
      seed: of all draws.
      draws: of the bootstrap.
    """

    groups: np.ndarray
    level: float
    seed: int
    draws: int

    @property
    def count(self) -> int:
        """The number of groups, G."""
        return int(self.groups.max()) + 1


def right(method: Method, order: str, threshold: float) -> np.ndarray:
    """Returns [N, K]: 1 right, 0 wrong, NaN where not labelled or without a reference length."""
    errors, reference = method.errors_in(order), method.reference[:, None]
    counted = ~np.isnan(errors) & (reference > 0)
    return np.where(counted, errors <= threshold * reference, np.nan)


def curve(method: Method, order: str, thresholds: np.ndarray, sampling: Sampling) -> Curve:
    """Measures PCK at each of the thresholds [T]."""
    hits = np.stack([np.nansum(right(method, order, t), axis=1) for t in thresholds], axis=1)
    counted = (~np.isnan(right(method, order, 0.0))).sum(axis=1, keepdims=True)
    above = resampling.sums(hits, sampling.groups)
    below = np.broadcast_to(resampling.sums(counted, sampling.groups), above.shape)
    pck = resampling.shares(above, below, sampling.level, sampling.seed, sampling.draws)
    return Curve(method.name, order, Band(thresholds, *pck))


def ceiling(method: Method, thresholds: np.ndarray) -> Band | None:
    """Computes the best PCK that minds the order of pairs, or nothing where that can be seen."""
    points, truth = method.points, method.predictions
    if points.order_known or not points.interchangeable_pairs:
        return None
    found = [
        order_ceiling(truth.truth, truth.weight, points, float(t), method.reference)
        for t in thresholds
    ]
    return Band(thresholds, *np.array(found).T)


def compare(
    methods: Sequence[Method],
    orders: Sequence[str],
    quoted: Sequence[float],
    threshold: float,
    order_of_points: str,
    sampling: Sampling,
) -> tuple[PairedTest, ...]:
    """Tests all pairs of methods, on all points and on each.

    Args:
      methods: with the same rows.
      orders: in which PCK and error of all points are tested.
      quoted: thresholds of PCK of all points.
      threshold: of PCK of single points.
      order_of_points: of single points.
      sampling: how to draw.

    Returns:
      The tests of all points, one family for Holm's correction, then those of single points,
      another.
    """
    pairs = list(itertools.combinations(methods, 2))
    whole, single = [], []
    for a, b in pairs:
        for order in orders:
            whole += [_test(a, b, "pck", order, "", t, sampling) for t in quoted]
            whole.append(_test(a, b, "error_px", order, "", np.nan, sampling))
        for point in a.points.names:
            single.append(_test(a, b, "pck", order_of_points, point, threshold, sampling))
            single.append(_test(a, b, "error_px", order_of_points, point, np.nan, sampling))
    return (*_adjusted(whole), *_adjusted(single))


def _adjusted(tests: list[PairedTest]) -> list[PairedTest]:
    adjusted = resampling.holm(np.array([test.p for test in tests]))
    return [
        dataclasses.replace(test, adjusted=float(p))
        for test, p in zip(tests, adjusted, strict=True)
    ]


def _test(
    a: Method,
    b: Method,
    quantity: str,
    order: str,
    point: str,
    threshold: float,
    sampling: Sampling,
) -> PairedTest:
    """Compares two methods on the points that count for both; NaN if a prediction is lost."""
    if quantity == "pck":
        first, second = right(a, order, threshold), right(b, order, threshold)
    else:
        first, second = a.errors_in(order), b.errors_in(order)
    if point:
        k = a.points.names.index(point)
        first, second = first[:, [k]], second[:, [k]]
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = first - second
    counted = ~np.isnan(first) & ~np.isnan(second)
    measurable = bool(counted.any()) and bool(np.isfinite(difference[counted]).all())
    groups, level = sampling.groups, sampling.level
    above = resampling.sums(np.where(counted, difference, 0.0).sum(axis=1, keepdims=True), groups)
    below = resampling.sums(counted.sum(axis=1, keepdims=True), groups)
    interval, p, is_exact = Interval(np.nan, np.nan, np.nan), np.nan, False
    if measurable:
        found = resampling.ratios(above, below, level, sampling.seed, sampling.draws)
        interval = Interval(*(float(number[0]) for number in found))
        p, is_exact = resampling.sign_flip(above[:, 0], sampling.seed)
    return PairedTest(
        first=a.name,
        second=b.name,
        quantity=quantity,
        order=order,
        point=point,
        threshold=threshold,
        difference=interval,
        p=p,
        adjusted=np.nan,
        groups=int((below > 0).sum()),
        differing=int((above != 0).sum()),
        is_exact=is_exact,
        level=level,
    )

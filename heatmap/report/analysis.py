"""Compares methods: everything that a report says, from saved files."""

from collections.abc import Sequence

import numpy as np

from heatmap.report import accuracy, calibration, failures, keypoint_errors, methods, text
from heatmap.report.findings import (
    ORDERED,
    UNORDERED,
    Ablation,
    Budget,
    Comparison,
    Method,
)
from heatmap.report.resampling import DRAWS

QUOTED = (0.05, 0.1, 0.15, 0.2)
RIGHT = 0.1
_MOST, _STEP = 0.3, 0.005


def order_of_points(method: Method) -> str:
    """Says how single points are held against their labels: as the data allow."""
    seen = method.points.order_known or not method.points.interchangeable_pairs
    return ORDERED if seen else UNORDERED


def compare(
    runs: Sequence[Method],
    split: str,
    budgets: Sequence[Budget] = (),
    ablations: Sequence[Ablation] = (),
    quoted: Sequence[float] = QUOTED,
    threshold: float = RIGHT,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Measures, tests and describes methods on the same examples.

    Args:
      runs: from `methods.open_methods`, or brought to the same rows by `methods.align`.
      split: on which they were scored.
      budgets: from `budget.measure`, where the data are at hand.
      ablations: from `ablation.read`.
      quoted: thresholds of the PCK table.
      threshold: within which a single point is right.
      level: of intervals.
      draws: of the bootstrap.
      seed: of all draws; the same seed gives the same comparison.
    """
    first = runs[0]
    _, groups = np.unique(first.predictions.groups, return_inverse=True)
    sampling = accuracy.Sampling(groups, level, seed, draws)
    order = order_of_points(first)
    # Where no method gains by exchanging a pair, both orders would say everything twice.
    gains = any(np.any(m.unordered_errors != m.errors, where=~np.isnan(m.errors)) for m in runs)
    orders = [ORDERED, UNORDERED] if gains or order == UNORDERED else [ORDERED]
    steps = np.arange(round(_MOST / _STEP) + 1) * _STEP
    thresholds = np.unique(np.round([*steps, *quoted, threshold], 6))
    pairs = [(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]]
    comparison = Comparison(
        split=split,
        level=level,
        quoted=tuple(quoted),
        threshold=threshold,
        order=order,
        groups=sampling.count,
        methods=tuple(runs),
        settings=methods.settings_that_differ(runs),
        curves=tuple(accuracy.curve(m, o, thresholds, sampling) for o in orders for m in runs),
        ceiling=accuracy.ceiling(first, thresholds),
        tests=accuracy.compare(runs, orders, quoted, threshold, order, sampling),
        keypoints=tuple(
            described
            for m in runs
            for described in keypoint_errors.measure(m, order, tuple(quoted), sampling)
        ),
        images=failures.rows(runs, order, threshold),
        failures=tuple(failures.find(a, b, order, threshold) for a, b in pairs),
        calibrations=tuple(
            found for m in runs for found in calibration.measure(m, order, threshold, sampling)
        ),
        budgets=tuple(budgets),
        ablations=tuple(ablations),
        text={},
    )
    return text.with_text(comparison)

"""What the charts of the page draw, as plain values that JSON can hold; NaN becomes None.

The page's scripts look numbers up here and never compute one: what a slider shows is what the
analysis found.
"""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from heatmap.report import phrases
from heatmap.report.accuracy import right
from heatmap.report.findings import (
    BOTH_RIGHT,
    BOTH_WRONG,
    FIRST_ONLY,
    SECOND_ONLY,
    Comparison,
    Interval,
    Method,
)
from heatmap.report.keypoint_errors import offsets

GROUPS = (FIRST_ONLY, SECOND_ONLY, BOTH_WRONG, BOTH_RIGHT)
_MOST_OFFSETS = 600  # points drawn for one keypoint of one method


def plain(value: Any) -> Any:
    """Turns dataclasses, arrays and mappings into what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def of(comparison: Comparison) -> dict[str, Any]:
    """Collects what all charts draw."""
    orders = list(dict.fromkeys(curve.order for curve in comparison.curves))
    thresholds = comparison.curves[0].pck.thresholds
    return plain(
        {
            "methods": [method.name for method in comparison.methods],
            "points": comparison.methods[0].points.names,
            "thresholds": thresholds,
            "start": int(np.argmin(np.abs(thresholds - comparison.threshold))),
            "threshold": comparison.threshold,
            "order": comparison.order,
            "curves": {order: _curves(comparison, order) for order in orders},
            "ceiling": _described(comparison.ceiling) if comparison.ceiling else None,
            "counts": {
                order: [
                    counts(a, b, order, thresholds)
                    for a, b in itertools.combinations(comparison.methods, 2)
                ]
                for order in orders
            },
            "keypoints": [
                [k for k in comparison.keypoints if k.method == method.name]
                for method in comparison.methods
            ],
            "offsets": [_offsets(method, comparison.order) for method in comparison.methods],
            "budgets": comparison.budgets,
            "calibrations": comparison.calibrations,
            "training": [method.log for method in comparison.methods],
            "ablations": comparison.ablations,
        }
    )


def _curves(comparison: Comparison, order: str) -> list[dict[str, Any]]:
    return [_described(curve.pck) for curve in comparison.curves if curve.order == order]


def _described(band) -> dict[str, Any]:
    """Adds to a curve what the page says of each of its thresholds."""
    text = [
        phrases.interval(Interval(float(v), float(low), float(high)), phrases.share)
        for v, low, high in zip(band.value, band.low, band.high, strict=True)
    ]
    return {"value": band.value, "low": band.low, "high": band.high, "text": text}


def counts(first: Method, second: Method, order: str, thresholds: np.ndarray) -> list[list[int]]:
    """Counts the points in each of GROUPS at each of the thresholds [T]; returns [T][4]."""
    found = []
    for threshold in thresholds:
        hits = [right(method, order, float(threshold)) for method in (first, second)]
        counted = ~np.isnan(hits[0]) & ~np.isnan(hits[1])
        a, b = (hit == 1 for hit in hits)
        masks = (a & ~b, b & ~a, ~a & ~b, a & b)
        found.append([int((counted & mask).sum()) for mask in masks])
    return found


def _offsets(method: Method, order: str) -> list[dict[str, Any]]:
    """Thins the error vectors of each keypoint out to what a phone can draw."""
    between = offsets(method, order)
    drawn = []
    for k in range(between.shape[1]):
        known = between[np.isfinite(between[:, k]).all(axis=-1), k]
        every = max(1, math.ceil(len(known) / _MOST_OFFSETS))
        drawn.append({"x": known[::every, 0].round(2), "y": known[::every, 1].round(2)})
    return drawn

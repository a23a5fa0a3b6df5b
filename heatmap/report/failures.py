"""Which examples go wrong, under which method, ranked."""

from collections.abc import Sequence

import numpy as np

from heatmap.predictions import mean
from heatmap.report.accuracy import right
from heatmap.report.findings import (
    BOTH_RIGHT,
    BOTH_WRONG,
    FIRST_ONLY,
    SECOND_ONLY,
    Case,
    Failures,
    ImageRow,
    Method,
)


def rows(methods: Sequence[Method], order: str, threshold: float) -> tuple[ImageRow, ...]:
    """Sums up each instance.

    Args:
      methods: with the same rows.
      order: ORDERED or UNORDERED.
      threshold: within which a point is right.
    """
    first = methods[0].predictions
    hits = [right(m, order, threshold) for m in methods]
    errors = [m.errors_in(order) for m in methods]
    return tuple(
        ImageRow(
            row=n,
            id=str(first.ids[n]),
            instance=int(first.instances[n]),
            group=str(first.groups[n]),
            error=tuple(mean(e[n]) for e in errors),
            worst=tuple(_largest(e[n]) for e in errors),
            right=tuple(mean(h[n]) for h in hits),
            score=tuple(mean(m.predictions.score[n]) for m in methods),
            entropy=tuple(mean(m.predictions.entropy[n]) for m in methods),
        )
        for n in range(len(first.ids))
    )


def _largest(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.max()) if values.size else np.nan


def find(first: Method, second: Method, order: str, threshold: float) -> Failures:
    """Groups and ranks the points that at least one of two methods has wrong.

    Args:
      first: a method.
      second: another, with the same rows.
      order: ORDERED or UNORDERED.
      threshold: within which a point is right.
    """
    hits = [right(m, order, threshold) for m in (first, second)]
    counted = ~np.isnan(hits[0]) & ~np.isnan(hits[1])
    a, b = (counted & (h == 1) for h in hits)
    masks = {FIRST_ONLY: a & ~b, SECOND_ONLY: b & ~a, BOTH_WRONG: counted & ~a & ~b}
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = [m.errors_in(order) / m.reference[:, None] for m in (first, second)]
    worst = {
        FIRST_ONLY: relative[1] - np.where(a, relative[0], 0.0),
        SECOND_ONLY: relative[0] - np.where(b, relative[1], 0.0),
        BOTH_WRONG: np.minimum(*relative),
    }
    counts = {group: int(mask.sum()) for group, mask in masks.items()}
    counts[BOTH_RIGHT] = int((a & b).sum())
    cases = {}
    for group, mask in masks.items():
        places = np.argwhere(mask)  # by row, then point: ties keep that order
        ranked = places[np.argsort(-worst[group][mask], kind="stable")]
        cases[group] = tuple(
            Case(
                row=int(n),
                point=int(k),
                errors=_two(first.errors_in(order)[n, k], second.errors_in(order)[n, k]),
                relative=_two(relative[0][n, k], relative[1][n, k]),
                scores=_two(first.predictions.score[n, k], second.predictions.score[n, k]),
                entropies=_two(first.predictions.entropy[n, k], second.predictions.entropy[n, k]),
            )
            for n, k in ranked
        )
    return Failures(first.name, second.name, threshold, counts, cases)


def _two(first, second) -> tuple[float, float]:
    return float(first), float(second)

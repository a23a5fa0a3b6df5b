"""Tables of the page that gather numbers from several places of a comparison."""

from typing import Any

import numpy as np

from heatmap.predictions import summary
from heatmap.report import figures
from heatmap.report.findings import (
    BOTH_WRONG,
    FIRST_ONLY,
    SECOND_ONLY,
    Case,
    Comparison,
    Gallery,
    ImageRow,
    Interval,
    PairedTest,
)

_ROWS = 2000  # of examples: more would make the page slow to open
_CASES = 10  # listed of each group; the counts say how many there are


def summary_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Returns each method's scores: PCK at the quoted thresholds, mean and median error."""
    curves = {c.method: c.pck for c in comparison.curves if c.order == comparison.order}
    rows = []
    for method in comparison.methods:
        pck: list[Interval] = [curves[method.name].at(t) for t in comparison.quoted]
        errors = summary("mean", method.errors_in(comparison.order))
        rows.append({"pck": pck, "mean": errors["mean"], "median": errors["mean/median"]})
    return rows


def tests_of_all_points(comparison: Comparison) -> list[PairedTest]:
    """Returns the tests that are not of single keypoints."""
    return [test for test in comparison.tests if not test.point]


def image_rows(comparison: Comparison) -> list[ImageRow]:
    """Returns the rows of the table of examples, at most those with the largest errors."""
    worst = [max([0.0, *(e for e in row.error if not np.isnan(e))]) for row in comparison.images]
    kept = np.sort(np.argsort(-np.array(worst), kind="stable")[:_ROWS])
    return [comparison.images[i] for i in kept]


def failure_groups(comparison: Comparison, gallery: Gallery) -> list[dict[str, Any]]:
    """Returns, for each pair of methods, its three groups of failures with their pictures."""
    pairs = []
    for number, found in enumerate(comparison.failures):
        titles = {
            FIRST_ONLY: f"Only {found.first} is right",
            SECOND_ONLY: f"Only {found.second} is right",
            BOTH_WRONG: "Both are wrong",
        }
        groups = []
        for group, title in titles.items():
            cases = found.cases[group]
            shown = gallery.failures.get((found.first, found.second, group), ())
            groups.append(
                {
                    "name": group,
                    "title": title,
                    "count": found.counts[group],
                    "cases": cases[:_CASES],
                    "figures": [
                        figures.example(comparison, e, f"{group}-{number}", _in_row(cases, e.row))
                        for e in shown
                    ],
                }
            )
        pairs.append({"found": found, "total": sum(found.counts.values()), "groups": groups})
    return pairs


def _in_row(cases: tuple[Case, ...], row: int) -> tuple[Case, ...]:
    return tuple(case for case in cases if case.row == row)

"""Whether intervals keep their word: the share of cases in which they hold the truth, by level."""

import dataclasses
import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed, and none is looked for

from matplotlib import pyplot as plt

from heatmap import workdir
from heatmap.report import resampling
from heatmap.report.plots import colour, plain

_SEED = 0
_LEVEL = 0.95  # of the interval of a coverage


@dataclasses.dataclass(frozen=True)
class Row:
    """The coverage of one kind of interval.

    Attributes:
      what: 'points', or the name of a measurement.
      level: that was asked for.
      coverage: that was reached; each group weighs the same.
      low: of its 95 % interval, by bootstrap over groups; NaN with fewer than two.
      high: likewise.
      groups: how many groups were tested.
      half_width: px, the median.
    """

    what: str
    level: float
    coverage: float
    low: float
    high: float
    groups: int
    half_width: float


def row(
    what: str, level: float, errors: np.ndarray, widths: np.ndarray, groups: np.ndarray
) -> Row | None:
    """Counts how often errors stay within intervals.

    Args:
      what: is measured.
      level: that was asked for.
      errors: [N, C] px, NaN where there is no truth.
      widths: [N, C] px, NaN where there is no interval.
      groups: [N] str.

    Returns:
      A row, or None if there is nothing to count.
    """
    known = ~np.isnan(errors) & ~np.isnan(widths)
    held = (known & (errors <= widths)).sum(axis=1)
    counted = known.sum(axis=1)
    _, index = np.unique(groups, return_inverse=True)
    in_group, of_group = np.bincount(index, counted), np.bincount(index, held)
    tested = in_group > 0
    if not tested.any():
        return None
    means = (of_group[tested] / in_group[tested])[:, None]
    value, low, high = resampling.shares(means, np.ones_like(means), _LEVEL, _SEED)
    half = float(np.median(widths[known]))
    ends = float(low[0]), float(high[0])
    return Row(what, level, float(value[0]), *ends, int(tested.sum()), half)


def coverage_table(rows: Sequence[Row]) -> str:
    """Lays out what was reached on the test split."""
    width = max(map(len, ["on test", *(row.what for row in rows)]))
    lines = [f"{'on test':<{width}}  level  reached  95 % interval  groups  median ± px"]
    for row in rows:
        between = f"{row.low:.3f}-{row.high:.3f}"
        lines.append(
            f"{row.what:<{width}}  {row.level:5.0%}  {row.coverage:7.3f}  {between:>13}  "
            f"{row.groups:6}  {row.half_width:11.3g}"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws the coverage that was reached over that which was asked for, as a PNG."""
    figure, axes = plt.subplots(figsize=(4.2, 4.2))
    least = min(0.5, *(row.low for row in rows if np.isfinite(row.low)), 1.0)
    axes.plot([least, 1], [least, 1], color="0.6", linewidth=1)
    kinds = list(dict.fromkeys(row.what for row in rows))
    for i, what in enumerate(kinds):
        mine = [row for row in rows if row.what == what]
        level = np.array([row.level for row in mine]) + 0.003 * (i - (len(kinds) - 1) / 2)
        reached = np.array([row.coverage for row in mine])
        ends = [reached - [r.low for r in mine], [r.high for r in mine] - reached]
        axes.errorbar(
            level,
            reached,
            np.nan_to_num(ends),
            fmt="o-",
            capsize=3,
            color=colour(i),
            label=plain(what),
        )
    axes.set(xlabel="coverage asked for", ylabel="coverage reached", xlim=(least, 1.01))
    axes.set(ylim=(least, 1.01), aspect="equal")
    axes.legend(frameon=False)
    figure.tight_layout()
    with workdir.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)

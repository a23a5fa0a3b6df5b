"""Whether intervals and probabilities keep their word on groups that nothing was fitted to.

Of intervals that is the share of cases in which they hold the truth, by level; of probabilities the
share of cases that are so, among those of which about the same was stated.
"""

import dataclasses
import itertools
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
_LEVEL = 0.95  # of the interval of a share
EDGES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # of what is stated: good models are mostly sure


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


@dataclasses.dataclass(frozen=True)
class Bin:
    """What became of the cases of which about the same probability was stated.

    Attributes:
      what: 'confidence' or 'visibility'.
      least: stated in this bin, which includes it.
      most: stated; together with `least` = 0 and 1 of all cases.
      stated: the mean.
      observed: the share that is so.
      low: of its 95 % interval, by bootstrap over groups; NaN with fewer than two.
      high: likewise.
      groups: that have such a case.
      share: of all cases. Each group weighs the same in all of these.
    """

    what: str
    least: float
    most: float
    stated: float
    observed: float
    low: float
    high: float
    groups: int
    share: float


def bins(what: str, stated: np.ndarray, so: np.ndarray, groups: np.ndarray) -> list[Bin]:
    """Sets probabilities beside what happened.

    Args:
      what: is stated.
      stated: [N, K] probabilities, NaN where the truth is not known.
      so: [N, K] bool, what happened.
      groups: [N] str.

    Returns:
      All cases as one bin, if there are any, and then each bin that has some.
    """
    known = ~np.isnan(stated)
    of_group = np.broadcast_to(np.asarray(groups)[:, None], known.shape)[known]
    stated, so = stated[known], so[known]
    if not len(stated):
        return []
    _, index, sizes = np.unique(of_group, return_inverse=True, return_counts=True)
    ends = [(EDGES[0], EDGES[-1]), *itertools.pairwise(EDGES)]
    inside = np.stack([(stated >= a) & ((stated < b) | (b == EDGES[-1])) for a, b in ends], axis=1)
    count = resampling.sums(inside.astype(float), index)  # [G, bins]
    held = resampling.sums((inside & so[:, None]).astype(float), index)
    said = resampling.sums(np.where(inside, stated[:, None], 0.0), index)
    count, held, said = (array / sizes[:, None] for array in (count, held, said))
    total = count.sum(axis=0)
    value, low, high = resampling.shares(held, count, _LEVEL, _SEED)
    return [
        Bin(
            what,
            *ends[b],
            stated=float(said[:, b].sum() / total[b]),
            observed=float(value[b]),
            low=float(low[b]),
            high=float(high[b]),
            groups=int((count[:, b] > 0).sum()),
            share=float(total[b] / total[0]),
        )
        for b in np.flatnonzero(total > 0)
    ]


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


def bins_table(found: Sequence[Bin]) -> str:
    """Lays out what was stated, and what was observed on the test split."""
    head = "stated between"
    names = [f"{b.what} {b.least:.2f}-{b.most:.2f}" for b in found]
    width = max(map(len, [head, *names]))
    lines = [f"{head:<{width}}   mean  observed  95 % interval  groups  share of points"]
    for name, one in zip(names, found, strict=True):
        between = f"{one.low:.3f}-{one.high:.3f}"
        lines.append(
            f"{name:<{width}}  {one.stated:5.3f}  {one.observed:8.3f}  {between:>13}  "
            f"{one.groups:6}  {one.share:15.1%}"
        )
    return "\n".join(lines)


def draw(rows: Sequence[Row], found: Sequence[Bin], path: pathlib.Path) -> None:
    """Draws, as a PNG, coverage over level and, where it is stated, observed over stated.

    Args:
      rows: of intervals.
      found: of probabilities, perhaps none.
      path: of the picture.
    """
    count = 2 if found else 1
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4.2), squeeze=False)
    draw_coverage(rows, axes[0, 0])
    if found:
        draw_bins(found, axes[0, 1])
    figure.tight_layout()
    with workdir.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def draw_coverage(rows: Sequence[Row], axes) -> None:
    """Draws the coverage that was reached over that which was asked for."""
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
            np.maximum(np.nan_to_num(ends), 0),
            fmt="o-",
            capsize=3,
            color=colour(i),
            label=plain(what),
        )
    axes.set(xlabel="coverage asked for", ylabel="coverage reached", xlim=(least, 1.01))
    axes.set(ylim=(least, 1.01), aspect="equal")
    axes.legend(frameon=False)


def draw_bins(found: Sequence[Bin], axes) -> None:
    """Draws what was observed over what was stated, without the bin of all cases."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    for i, what in enumerate(dict.fromkeys(one.what for one in found)):
        mine = [b for b in found if b.what == what and (b.least, b.most) != (EDGES[0], EDGES[-1])]
        observed = np.array([b.observed for b in mine])
        ends = [observed - [b.low for b in mine], [b.high for b in mine] - observed]
        axes.errorbar(
            [b.stated for b in mine],
            observed,
            np.maximum(np.nan_to_num(ends), 0),
            fmt="o-",
            capsize=3,
            color=colour(i),
            label=what,
        )
    axes.set(xlabel="probability stated", ylabel="share observed", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_aspect("equal")
    axes.legend(frameon=False)

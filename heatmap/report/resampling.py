"""How sure a number is: bootstrap over groups, sign-flip tests, Holm's correction.

The unit that is drawn is the group (a video, a specimen, a picture that stands alone), because
points of one picture and frames of one video are not independent. All draws follow from a seed, and
two statistics with the same seed and groups see the same draws, so that differences are paired.

Intervals are percentiles of the bootstrap (Efron and Tibshirani, 1993, chapter 13). A share of
exactly 0 or 1 leaves a bootstrap nothing to vary; there the bound is exact instead: G groups
without a single exception are seen with a probability of α/2 if each has one with the probability
1 - (α/2)^(1/G) (Clopper and Pearson, Biometrika 1934), which is the most that a share can lack.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from heatmap.report.findings import Interval

DRAWS = 2000
_FLIPS = 9999
_MOST_EXACT = 14  # groups, whose 16,384 signs are all tried
_CELLS = 4_000_000  # of an array held at a time


def sums(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Adds rows [N, S] up by group [N] (0 … G - 1) to [G, S], NaN as nothing."""
    total = np.zeros((int(groups.max()) + 1, values.shape[1]))
    np.add.at(total, groups, np.where(np.isnan(values), 0.0, values))
    return total


def multiplicities(groups: int, draws: int, seed: int, cells: int) -> Iterator[np.ndarray]:
    """Yields how often each group is in each bootstrap draw.

    Args:
      groups: G.
      draws: how many in all.
      seed: of the draws.
      cells: the width of what the caller makes of each draw, which limits the draws at a time.

    Yields:
      [b, G] int64; rows sum to G. The numbers do not depend on `cells`.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // max(cells, groups))
    for start in range(0, draws, step):
        count = min(step, draws - start)
        chosen = rng.integers(groups, size=(count, groups))
        chosen += np.arange(count)[:, None] * groups
        yield np.bincount(chosen.ravel(), minlength=count * groups).reshape(count, groups)


def ratios(
    numerator: np.ndarray, denominator: np.ndarray, level: float, seed: int, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measures ratios of sums over groups, such as means and shares, with intervals.

    Args:
      numerator: [G, S].
      denominator: [G, S], counts.
      level: of the interval.
      seed: of the draws.
      draws: of the bootstrap.

    Returns:
      value, low and high, [S] each; NaN without anything to count. The interval is NaN with fewer
      than two groups that count, and where the numerator is infinite.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        value = numerator.sum(axis=0) / denominator.sum(axis=0)
    finite = np.isfinite(numerator).all(axis=0)
    known = finite & ((denominator > 0).sum(axis=0) >= 2)
    low, high = np.full_like(value, np.nan), np.full_like(value, np.nan)
    if known.any():
        above, below = numerator[:, known], denominator[:, known].astype(np.float64)
        found = []
        for times in multiplicities(len(numerator), draws, seed, len(numerator)):
            weights = times.astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                found.append((weights @ above) / (weights @ below))
        ends = [(1 - level) / 2, (1 + level) / 2]
        low[known], high[known] = np.nanquantile(np.concatenate(found), ends, axis=0)
    return value, low, high


def shares(
    right: np.ndarray, counted: np.ndarray, level: float, seed: int, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measures shares, with intervals within [0, 1].

    Args:
      right: [G, S], how many are right.
      counted: [G, S], of how many.
      level: of the interval.
      seed: of the draws.
      draws: of the bootstrap.

    Returns:
      value, low and high, [S] each, as `ratios` does.
    """
    value, low, high = ratios(right, counted, level, seed, draws)
    units = (counted > 0).sum(axis=0)
    slack = 1 - ((1 - level) / 2) ** (1 / np.maximum(units, 1))
    high = np.where((units >= 2) & (value == 0), slack, high)
    low = np.where((units >= 2) & (value == 1), 1 - slack, low)
    return value, low, high


def quantile(
    values: np.ndarray, groups: np.ndarray, q: float, level: float, seed: int, draws: int = DRAWS
) -> Interval:
    """Measures a quantile (NumPy's, linear between neighbours) with its interval.

    Args:
      values: [n], NaN not counted; may be infinite.
      groups: [n] int.
      q: in [0, 1].
      level: of the interval.
      seed: of the draws.
      draws: of the bootstrap.
    """
    kept = ~np.isnan(values)
    count = int(groups.max()) + 1
    values, groups = values[kept], groups[kept]
    if not values.size:
        return Interval(np.nan, np.nan, np.nan)
    order = np.argsort(values, kind="stable")
    values, groups = values[order], groups[order]
    value = float(_weighted_quantile(values, np.ones((1, values.size), np.int64), q)[0])
    if np.unique(groups).size < 2:
        return Interval(value, np.nan, np.nan)
    found = []
    for times in multiplicities(count, draws, seed, values.size):
        weights = times[:, groups]
        found.append(_weighted_quantile(values, weights[weights.sum(axis=1) > 0], q))
    low, high = _ends(np.concatenate(found), level)
    return Interval(value, low, high)


def _weighted_quantile(ordered: np.ndarray, weights: np.ndarray, q: float) -> np.ndarray:
    """Takes the quantile of `ordered` [n] with each value repeated `weights` [b, n] times."""
    reached = np.cumsum(weights, axis=1)  # how many of the repeated values there are up to here
    position = q * (reached[:, -1] - 1)
    below, above = np.floor(position), np.ceil(position)
    first = ordered[(reached <= below[:, None]).sum(axis=1)]
    second = ordered[(reached <= above[:, None]).sum(axis=1)]
    part = position - below
    with np.errstate(invalid="ignore"):  # where both are infinite, the difference is not taken
        return np.where(first == second, first, first + part * (second - first))


def _ends(found: np.ndarray, level: float) -> tuple[float, float]:
    """Returns the central interval of bootstrap values, some of which may be infinite."""
    ordered = np.sort(found)[None]
    ones = np.ones(ordered.shape, np.int64)
    low, high = (_weighted_quantile(ordered[0], ones, (1 + s * level) / 2)[0] for s in (-1, 1))
    return float(low), float(high)


def rank_correlation(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, level: float, seed: int, draws: int = 500
) -> Interval:
    """Measures Spearman's rank correlation with its interval.

    Args:
      a: [n]; NaN not counted.
      b: [n]; NaN not counted; may be infinite.
      groups: [n] int.
      level: of the interval.
      seed: of the draws.
      draws: of the bootstrap.
    """
    kept = ~np.isnan(a) & ~np.isnan(b)
    count = int(groups.max()) + 1
    a, b, groups = a[kept], b[kept], groups[kept]
    if a.size < 2:
        return Interval(np.nan, np.nan, np.nan)
    value = _spearman(a, b)
    found = []
    for times in multiplicities(count, draws, seed, count):
        for row in times[:, groups]:
            found.append(_spearman(np.repeat(a, row), np.repeat(b, row)))
    known = np.array(found)[~np.isnan(found)]
    if np.unique(groups).size < 2 or not known.size:
        return Interval(value, np.nan, np.nan)
    return Interval(value, *_ends(known, level))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlates mid-ranks; NaN where one of the two does not vary."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else np.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks from 0; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[place]


def sign_flip(differences: np.ndarray, seed: int, flips: int = _FLIPS) -> tuple[float, bool]:
    """Tests whether paired differences are symmetric about zero.

    Were two methods alike, each group's difference could as well have the other sign; the p-value
    is the share of all signs that give a sum as far from zero as the one observed (Fisher, 1935).
    With more than 14 groups that differ, of a random sample of signs, the observed ones included,
    which keeps the test valid (Phipson and Smyth, 2010, arXiv:1603.05766). With one point in each
    group and right or wrong as its value, the exact test is McNemar's.

    Args:
      differences: [G], one for each group, finite.
      seed: of the random signs.
      flips: how many are drawn.

    Returns:
      (two-sided p-value, whether all signs were tried).
    """
    changed = differences[differences != 0]
    if not changed.size:
        return 1.0, True
    least = abs(changed.sum()) - 1e-9 * np.abs(changed).sum()  # sums differ in their last digits
    if changed.size <= _MOST_EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=changed.size)))
        return float((np.abs(signs @ changed) >= least).mean()), True
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // changed.size)
    reached = 0
    for start in range(0, flips, step):
        count = min(step, flips - start)
        signs = 2.0 * rng.integers(2, size=(count, changed.size), dtype=np.int8) - 1.0
        reached += int((np.abs(signs @ changed) >= least).sum())
    return (1 + reached) / (1 + flips), False


def holm(p: np.ndarray) -> np.ndarray:
    """Adjusts p-values so that the chance of any false positive keeps its level.

    Args:
      p: [n], NaN where there was no test.

    Returns:
      [n] by the step-down procedure of Holm (Scandinavian Journal of Statistics, 1979).
    """
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted

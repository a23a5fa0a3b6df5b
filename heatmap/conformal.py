"""Split conformal prediction where errors come in groups: how large an error may be, honestly.

Specimens of one tray, or frames of one video, err alike: a hundred of them say little more about
the next tray than one does. So the group is the unit. The bound returned here covers a new example
of a new group with the probability asked for, whatever the distribution of errors, as long as
groups are exchangeable (Vovk, Gammerman and Shafer, 2005, for groups of one; Dunn, Wasserman and
Ramdas, JASA 2022, and Lee, Barber and Willett, 2023, arXiv:2306.06342, for larger ones).
"""

import math

import numpy as np

from heatmap.errors import UserError


def groups_needed(level: float) -> int:
    """Returns the fewest groups with which a bound is finite: 19 for 0.95, since 19/20 is that.

    Args:
      level: of coverage, in (0, 1).

    Raises:
      ValueError: for another level.
    """
    if not 0 < level < 1:
        raise ValueError(f"A level of coverage lies between 0 and 1, not at {level:g}.")
    # 1/(1 - level) - 1, but for the rounding of 1 - 0.95.
    return math.ceil(round(level / (1 - level), 9))


def bound(scores: np.ndarray, groups: np.ndarray, level: float) -> float:
    """Returns the value that the score of a new example stays within with some probability.

    Each group weighs 1/(G + 1), divided evenly between its examples; the group to come has the
    same weight, at infinity. The bound is the quantile of that distribution; for groups of one it
    is the ⌈(G + 1)·level⌉-th smallest score.

    It covers with a probability of at least `level` and, where no two groups share a score, of less
    than `level + 1/(G + 1)`, whatever the sizes of the groups.

    Args:
      scores: [N], such as absolute errors, of examples that nothing else has been fitted to;
        infinite where a prediction was lost.
      groups: [N], the group of each.
      level: of coverage, in (0, 1).

    Returns:
      The bound; infinite if so many scores are.

    Raises:
      UserError: if there are too few groups for the level, or a score is missing.
    """
    scores = np.asarray(scores, np.float64)
    if np.isnan(scores).any():
        raise UserError("A score to calibrate with is missing; leave its example out.")
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    needed = groups_needed(level)
    if len(sizes) < needed:
        raise UserError(
            f"{len(sizes)} groups are too few to calibrate at {level:.0%}, which takes {needed}: "
            "hold out more groups, or ask for less coverage."
        )
    # Why less than 1/(G + 1) above the level: any of the G + 1 groups may be the one to come, so
    # coverage is the mean of F_g(t_g), the share of g's scores within the bound of the other G. Let
    # t_m be the largest bound. A bound is a score of another group, so F_g(t_g) is at most what F_g
    # is just below t_m; there all F but m's sum to less than (G + 1)·level, and m's is at most 1.
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / sizes[index[order]]) / (len(sizes) + 1)
    # Sums of many parts fall short of a level that they reach on paper by some rounding.
    enough = np.flatnonzero(reached >= level - 1e-9)
    return float(scores[order[enough[0]]])

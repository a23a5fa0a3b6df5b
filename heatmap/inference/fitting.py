"""What labelled groups that nothing else has touched teach about errors, and tell about that.

The cal split gives the factors and the probabilities of a `Calibration`; the test split says how
often its intervals hold what an annotator marked, and whether a probability of 0.9 is right in nine
of ten cases.
"""

from collections.abc import Sequence

import numpy as np

from heatmap import conformal
from heatmap.errors import UserError
from heatmap.inference import uncertainty
from heatmap.inference.labelled import Errors
from heatmap.inference.uncertainty import Calibration, Line, Steps
from heatmap.keypoints import KeypointSet
from heatmap.report import reliability


def calibrate(
    errors: Errors,
    points: KeypointSet,
    identity: str,
    levels: Sequence[float],
    within: float,
    absent_known: bool,
    cropped: bool = False,
) -> Calibration:
    """Finds the factors of a predictor.

    Args:
      errors: of the cal split.
      points: what the K points mean, and the lengths that were measured.
      identity: of the predictor.
      levels: of coverage, ascending.
      within: share of the reference length that counts as right.
      absent_known: whether a missing label says that the point is not in the picture.
      cropped: whether the instances are crops by their boxes.

    Raises:
      UserError: if there are too few groups even for the lowest level.
    """
    groups = len(np.unique(errors.groups))
    needed = conformal.groups_needed(min(levels))
    if groups < needed:
        raise UserError(
            f"The cal split holds {groups} groups, too few for intervals at {min(levels):.0%}, "
            f"which take {needed}: hold out more (data.split.cal), or ask for less with --levels."
        )
    found = errors.found
    scale = uncertainty.spread(found)
    right, known = errors.right(within, absent_known)
    groups_of = np.broadcast_to(errors.groups[:, None], known.shape)
    confidence = visibility = None
    if known.any():
        confidence = monotone(found.score[known], right[known], groups_of[known])
    if absent_known and not errors.present.all() and not np.isnan(found.score).all():
        flat = (found.score.ravel(), errors.present.ravel(), groups_of.ravel())
        visibility = monotone(*flat)
    return Calibration(
        identity=identity,
        levels=tuple(levels),
        groups=groups,
        examples=len(found),
        points={
            name: factors(errors.points[:, k], scale[:, k], errors.groups, levels)
            for k, name in enumerate(points.names)
        },
        lines={
            line[0]: Line(
                *line[1:],
                factors(
                    errors.lines[:, m],
                    uncertainty.length_spread(found, line),
                    errors.groups,
                    levels,
                ),
            )
            for m, line in enumerate(points.measurements)
        },
        within=within,
        confidence=confidence,
        visibility=visibility,
        cropped=cropped,
    )


def factors(
    errors: np.ndarray, scale: np.ndarray, groups: np.ndarray, levels: Sequence[float]
) -> tuple[float, ...]:
    """Calibrates one point or line.

    Args:
      errors: [N] px, infinite where lost, NaN where not labelled.
      scale: [N] px, the yardstick.
      groups: [N].
      levels: of coverage.

    Returns:
      A factor for each level, NaN where too few groups show it.
    """
    known = ~np.isnan(errors)
    count = len(np.unique(groups[known]))
    ratios = errors[known] / scale[known]
    return tuple(
        conformal.bound(ratios, groups[known], level)
        if count >= conformal.groups_needed(level)
        else np.nan
        for level in levels
    )


def monotone(score: np.ndarray, right: np.ndarray, groups: np.ndarray) -> Steps:
    """Fits P(right) as a function of a score by isotonic regression, each group weighing the same.

    (Zadrozny and Elkan, KDD 2002.) The lowest step of such a fit ends where the wrong ones of the
    lowest scores do, perhaps with the first, and says 0. So a step counts as if two more groups had
    shown it, with the share that is right on the whole. Nothing is certain after n groups: values
    keep 1/(n + 2) away from 0 and 1, as by Laplace's rule of succession.

    Args:
      score: [N]; NaN counts as 0.
      right: [N] bool.
      groups: [N].
    """
    from scipy import optimize

    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # Equal scores must have equal values: they are one place with their mean.
    places, where = np.unique(np.nan_to_num(score), return_inverse=True)
    weight = 1 / sizes[index]
    total = np.bincount(where, weight)
    right_total = np.bincount(where, weight * right)
    ends = optimize.isotonic_regression(right_total / total, weights=total).blocks
    step = np.repeat(np.arange(len(ends) - 1), np.diff(ends))  # of each place
    of_groups = np.bincount(step[where] * len(sizes) + index, weight, len(ends[1:]) * len(sizes))
    of_groups = of_groups.reshape(-1, len(sizes))  # [steps, n], the weight of each group in each
    mass = of_groups.sum(axis=1)
    shown = mass**2 / (of_groups**2).sum(axis=1)  # by so many groups (Kish's effective number)
    share = np.bincount(step, right_total) / mass
    share = (shown * share + 2 * right_total.sum() / total.sum()) / (shown + 2)
    least = 1 / (len(sizes) + 2)
    fitted = optimize.isotonic_regression(share, weights=mass).x
    fitted = np.clip(fitted, least, 1 - least)
    starts = np.flatnonzero(np.diff(fitted, prepend=-1.0) > 0)
    return Steps(tuple(places[ends[starts]].tolist()), tuple(fitted[starts].tolist()))


def coverage(
    errors: Errors, calibration: Calibration, points: KeypointSet
) -> list[reliability.Row]:
    """Measures how often the intervals hold what an annotator marked, each group weighing the same.

    Args:
      errors: of another split.
      calibration: of the same predictor.
      points: what the points mean.

    Returns:
      A row for all points together and for each measurement, by level.
    """
    radii = calibration.radii(errors.found, points.names)
    widths = calibration.half_widths(errors.found, points.measurements)
    rows = []
    for i, level in enumerate(calibration.levels):
        rows.append(reliability.row("points", level, errors.points, radii[..., i], errors.groups))
        for m, (name, *_) in enumerate(points.measurements):
            column = (errors.lines[:, [m]], widths[:, [m], i])
            rows.append(reliability.row(name, level, *column, errors.groups))
    return [row for row in rows if row is not None]


def probabilities(
    errors: Errors, calibration: Calibration, absent_known: bool
) -> list[reliability.Bin]:
    """Sets what a calibration states of single points beside what is so, each group weighing alike.

    Args:
      errors: of another split.
      calibration: of the same predictor.
      absent_known: whether a missing label says that the point is not in the picture.

    Returns:
      A row for all points together and for each bin of the confidence, and likewise of the
      visibility, as far as these are stated.
    """
    rows = []
    if calibration.confidence:
        right, known = errors.right(calibration.within, absent_known)
        stated = np.where(known, calibration.confidence(errors.found.score), np.nan)
        rows += reliability.bins("confidence", stated, right, errors.groups)
    if calibration.visibility and absent_known:
        stated = calibration.visibility(errors.found.score)
        rows += reliability.bins("visibility", stated, errors.present, errors.groups)
    return rows

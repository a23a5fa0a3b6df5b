"""Sentences on why methods differ: where errors come from, what maps and logs tell of them."""

import math
from collections.abc import Sequence

import numpy as np

from heatmap.predictions import mean
from heatmap.report.findings import (
    BOTH_RIGHT,
    BOTH_WRONG,
    DECODING,
    FIRST_ONLY,
    REMAINDER,
    RESIZE,
    ROUNDING,
    SECOND_ONLY,
    UNORDERED,
    Ablation,
    Budget,
    Calibration,
    Comparison,
    Method,
)
from heatmap.report.phrases import interval, join, number, percent, px

_PART_NAMES = {
    DECODING: "target and decoder",
    RESIZE: "the way to the input's pixels and back",
    ROUNDING: "labels in whole pixels",
    REMAINDER: "the model",
}
# Scores of which fewer is better, by what their names hold.
_LESS_IS_BETTER = ("error", "err_", "loss")
_EXHAUSTED = 0.95  # from here on, a share of right points hardly tells settings apart
_WEAK = 0.3  # a rank correlation below this is called weak (Cohen, 1988: "medium" begins here)


def why(comparison: Comparison) -> list[str]:
    """Sets two signs of how a method errs beside each other.

    A model that cannot tell where a point is does best, under a squared error of coordinates, to
    stay near the mean place: its predictions move less than the truth. One that reads a map either
    finds a place or takes a wrong one: few errors hold most of the square.
    """
    sentences = []
    slopes = {}
    for method in comparison.methods:
        own = [k for k in comparison.keypoints if k.method == method.name]
        known = [k for k in own if not math.isnan(k.slope.value)]
        if not known:
            continue
        slopes[method.name] = mean(np.array([k.slope.value for k in known]))
        short = [k.point for k in known if k.slope.high < 1]
        spread = (
            f"; the interval lies below 1 at {join(short)}: there the predictions spread less than "
            "the truth, as where a model keeps to the mean place or takes one point for another"
            if short
            else "; no interval lies below 1, so that no pull to the mean place can be told"
        )
        sentences.append(
            f"Where a true point lies 1 px further to a side, that of {method.name} lies "
            f"{number(slopes[method.name])} px further on average over keypoints{spread}."
        )
        sentences += _concentration(comparison, method)
        sentences += _collapsed_pairs(comparison, method)
    return sentences


def _collapsed_pairs(comparison: Comparison, method: Method) -> list[str]:
    """Says how often both predictions of a pair without an order go to the same of its points."""
    if comparison.order != UNORDERED:
        return []
    sentences = []
    found, points = method.predictions, method.points
    for a, b in points.interchangeable_pairs:
        truth, predicted = found.truth[:, [a, b]], found.predicted[:, [a, b]]
        apart = np.linalg.norm(truth[:, 0] - truth[:, 1], axis=-1)
        limit = 2 * comparison.threshold * method.reference
        counted = (found.weight[:, [a, b]] > 0).all(axis=1) & (apart > limit) & (limit > 0)
        counted &= np.isfinite(predicted).all(axis=(1, 2))
        if not counted.any():
            continue
        distance = np.linalg.norm(predicted[:, :, None] - truth[:, None, :], axis=-1)
        nearest = distance[counted].argmin(axis=2)
        same = float((nearest[:, 0] == nearest[:, 1]).mean())
        sentences.append(
            f"In {percent(same)} of the {counted.sum()} pairs of {points.names[a]} and "
            f"{points.names[b]} that lie further apart than any place can be right for both, both "
            f"predictions of {method.name} are nearest to the same one of the two"
            + ("; loss.interchangeable=True trains without an order." if same > 0.5 else ".")
        )
    return sentences


def _concentration(comparison: Comparison, method: Method) -> list[str]:
    errors = method.errors_in(comparison.order)
    limit = comparison.threshold * method.reference[:, None]
    counted = np.isfinite(errors) & (limit > 0)
    total = float((errors[counted] ** 2).sum())
    if not total:
        return []
    gross = counted & (errors > limit)
    if not gross.any():
        return [
            f"{method.name} has no point wrong at {comparison.threshold:g}; the median error of "
            f"all is {px(_median(errors[counted]))}."
        ]
    held = float((errors[gross] ** 2).sum()) / total
    return [
        f"The {percent(gross.sum() / counted.sum())} of points that {method.name} has wrong at "
        f"{comparison.threshold:g} hold {percent(held)} of its squared error; the median error of "
        f"the rest is {px(_median(errors[counted & ~gross]))}."
    ]


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else math.nan


def failures(comparison: Comparison) -> list[str]:
    """Counts who fails where."""
    sentences = []
    for found in comparison.failures:
        count, total = found.counts, sum(found.counts.values())
        sentences.append(
            f"Of {total} points, at {found.threshold:g} both {found.first} and {found.second} have "
            f"{count[BOTH_RIGHT]} right and {count[BOTH_WRONG]} wrong; {count[FIRST_ONLY]} only "
            f"{found.first} has right, {count[SECOND_ONLY]} only {found.second}."
        )
        if total and count[FIRST_ONLY] and count[SECOND_ONLY]:
            sentences.append(
                f"Each is right where the other is not: a choice between {found.first} and "
                f"{found.second} made anew for each point could reach a PCK of at most "
                f"{(total - count[BOTH_WRONG]) / total:.3f}."
            )
    return sentences


def calibration(comparison: Comparison) -> list[str]:
    """Says for each score and entropy whether it tells the error."""
    sentences = [_telling(found) for found in comparison.calibrations]
    with_scores = {found.method for found in comparison.calibrations}
    without = [m.name for m in comparison.methods if m.name not in with_scores]
    if without:
        sentences.append(
            f"{join(without)} gives coordinates without a score, so that nothing says which of its "
            "predictions to trust."
        )
    return sentences


def _telling(found: Calibration) -> str:
    correlation = found.correlation
    expected = -1 if found.signal == "score" else 1
    measured = f"rank correlation with the error {interval(correlation, number)}"
    if not correlation.excludes(0.0):
        verdict = "cannot be told to say anything about its error"
    elif correlation.value * expected > 0:
        weakly = " weakly" if abs(correlation.value) < _WEAK else ""
        verdict = f"tells{weakly} how far off a point is"
    else:
        verdict = "misleads: it is the larger error that looks the surer"
    sentence = f"The {found.signal} of {found.method} {verdict} ({measured})"
    if len(found.bins) < 2:
        return f"{sentence}."
    low, high = found.bins[0], found.bins[-1]
    return (
        f"{sentence}; in the bin of the lowest {percent(low.right.value)} are right at "
        f"{found.threshold:g}, in that of the highest {percent(high.right.value)}."
    )


def budget(comparison: Comparison) -> list[str]:
    """Says what each part of the error amounts to, and how the parts add."""
    if not comparison.budgets:
        return ["There is no error budget: it needs the data, which were not at hand."]
    sentences = [
        "The squares of the parts add up to the total if the parts are independent; what the "
        "others leave is put down to the model. Medians do not add. Points whose prediction is "
        "lost are left out."
    ]
    return sentences + [_spent(found, comparison.threshold) for found in comparison.budgets]


def _spent(found: Budget, threshold: float) -> str:
    which = f"points that are right at {threshold:g}" if found.only_right else "points"
    if not found.count:
        return f"{found.method} has no {which}."
    parts = [
        f"{_PART_NAMES[part.name]} {px(part.rmse)} ({percent(part.share)} of the square)"
        for part in found.parts
    ]
    grid = ""
    if not math.isnan(found.stride[0]) and not found.only_right:
        grid = f" One pixel of its maps is {found.stride[0]:.3g} × {found.stride[1]:.3g} px."
    return (
        f"{found.method}, {found.count} {which}: root mean square error {px(found.rmse)} (median "
        f"{px(found.median)}); {join(parts)}.{grid}"
    )


def training(comparison: Comparison) -> list[str]:
    """Says when validation was best, and whether training went on past it."""
    sentences = []
    for method in comparison.methods:
        lines = [line for line in method.log if not math.isnan(line.val_loss)]
        if not lines:
            continue
        best, last = min(lines, key=lambda line: line.val_loss), lines[-1]
        if best is last:
            after = ", at the last evaluation: longer training may help"
        else:
            rise = (last.val_loss / best.val_loss - 1) if best.val_loss > 0 else math.nan
            after = f" of {last.epoch}; by the end it had risen by {percent(rise)}"
        sentences.append(
            f"The validation loss of {method.name} was lowest, {number(best.val_loss)}, after "
            f"epoch {best.epoch}{after}."
        )
    if len(comparison.methods) > 1 and len({m.config.loss.name for m in comparison.methods}) > 1:
        sentences.append("The methods have different losses, whose values do not compare.")
    return sentences


def ablation(comparison: Comparison) -> list[str]:
    """Names the best and worst settings by the first score, a sentence for each sweep."""
    return [_extremes(found) for found in comparison.ablations]


def telling_metric(found: Ablation) -> int | None:
    """Chooses the score to speak of: the first that the settings have not all but exhausted.

    Returns:
      Its place in `found.metrics`, or None if no run has any.
    """
    known = [
        i for i in range(len(found.metrics)) if any(math.isfinite(r.means[i]) for r in found.rows)
    ]
    for i in known:
        worst = min(r.means[i] for r in found.rows if math.isfinite(r.means[i]))
        if fewer_is_better(found.metrics[i]) or worst < _EXHAUSTED:
            return i
    return known[0] if known else None


def fewer_is_better(metric: str) -> bool:
    """Says whether a score is an error."""
    return any(part in metric for part in _LESS_IS_BETTER)


def _extremes(found: Ablation) -> str:
    place = telling_metric(found)
    if place is None:
        return f"No run of {found.name} has finished."
    metric = found.metrics[place]
    known = [row for row in found.rows if math.isfinite(row.means[place])]
    rows = sorted(known, key=lambda row: row.means[place], reverse=not fewer_is_better(metric))
    best, worst = rows[0].means[place], rows[-1].means[place]
    text = f"In {found.name}, "
    if place and not fewer_is_better(found.metrics[0]):
        text += f"{found.metrics[0]} is at least {number(_EXHAUSTED)} everywhere; "
    if best == worst:
        text += f"{metric} is {number(best)} with every setting"
    else:
        ends = [[r for r in rows if r.means[place] == value] for value in (best, worst)]
        shown = [_setting(found, same[0].settings) for same in ends]
        for i, same in enumerate(ends):
            if len(same) > 1:
                shown[i] = f"{len(same)} of {len(rows)} settings"
        text += (
            f"{metric} is best with {shown[0]}: {number(best)}; worst with {shown[1]}: "
            f"{number(worst)}"
        )
    deviations = [r.deviations[place] for r in known if math.isfinite(r.deviations[place])]
    if deviations:
        text += (
            f"; between seeds of one setting the standard deviation is up to "
            f"{number(max(deviations))}"
        )
    else:
        text += "; with one seed each, how much of this is chance is not known"
    if found.unfinished:
        text += f"; without scores: {join(found.unfinished)}"
    return text + "."


def _setting(found: Ablation, values: Sequence[str]) -> str:
    named = [f"{field}={value}" for field, value in zip(found.fields, values, strict=True) if value]
    return join(named) or "the defaults"

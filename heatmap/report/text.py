"""The sentences of a report, computed from its numbers: who wins, by how much, where, how surely.

Nothing is asserted that the numbers do not say: a difference is called one only if its interval
excludes zero and its adjusted p-value is below 1 - level.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from heatmap.report import explanations
from heatmap.report.findings import (
    ORDERED,
    UNORDERED,
    Comparison,
    Curve,
    KeypointErrors,
    PairedTest,
)
from heatmap.report.phrases import interval, join, p_value, percent, px, share

_FEW_GROUPS = 10


def with_text(comparison: Comparison) -> Comparison:
    """Returns the comparison with its sentences."""
    sections = {
        "summary": _summary,
        "curves": _curves,
        "ceiling": _ceiling,
        "keypoints": _keypoints,
        "why": explanations.why,
        "failures": explanations.failures,
        "calibration": explanations.calibration,
        "budget": explanations.budget,
        "training": explanations.training,
        "ablation": explanations.ablation,
        "statistics": _statistics,
    }
    text = {name: tuple(write(comparison)) for name, write in sections.items()}
    return dataclasses.replace(comparison, text=text)


def _curve(comparison: Comparison, method: str, order: str) -> Curve:
    return next(c for c in comparison.curves if (c.method, c.order) == (method, order))


def _disregarding(order: str) -> str:
    return ", without regard to the order of interchangeable points" if order == UNORDERED else ""


def _summary(comparison: Comparison) -> list[str]:
    """States the result for each pair of methods, or the scores of a single one."""
    order = comparison.order
    if len(comparison.methods) == 1:
        return [_scores(comparison, comparison.methods[0].name, order)]
    tests = [t for t in comparison.tests if not t.point and t.order == order]
    sentences = []
    for first, second in dict.fromkeys((t.first, t.second) for t in tests):
        pair = [t for t in tests if (t.first, t.second) == (first, second)]
        sentences.append(_verdict(comparison, [t for t in pair if t.quantity == "pck"]))
        sentences += [_error_verdict(t) for t in pair if t.quantity == "error_px"]
    return sentences


def _verdict(comparison: Comparison, tests: Sequence[PairedTest]) -> str:
    """Says at which thresholds one of two methods finds more points."""
    first, second, order = tests[0].first, tests[0].second, tests[0].order
    known = [t for t in tests if not math.isnan(t.difference.value)]
    if not known:
        return f"{first} and {second} have no labelled points in common to be compared on."
    clear = [t for t in known if t.is_clear]
    unclear = [t for t in known if not t.is_clear]
    parts = []
    for name in (first, second):
        won = [t for t in clear if t.better == name]
        if won:
            where = "at every threshold" if len(won) == len(known) else f"at {_thresholds(won)}"
            parts.append(
                f"{name} finds more points than {second if name == first else first} {where}: "
                + "; ".join(_evidence(comparison, t) for t in won)
            )
    if unclear and not clear:
        most = max(unclear, key=lambda t: abs(t.difference.value))
        parts.append(
            f"No difference in PCK between {first} and {second} can be told at any threshold: the "
            f"largest is {_difference(most)} at {most.threshold:g}"
        )
    elif unclear:
        parts.append(
            f"At {_thresholds(unclear)} the two cannot be told apart: "
            + "; ".join(_difference(t) + f" at {t.threshold:g}" for t in unclear)
        )
    return f"{'. '.join(parts)}{_disregarding(order)}."


def _evidence(comparison: Comparison, test: PairedTest) -> str:
    one, two = (
        _curve(comparison, name, test.order).pck.at(test.threshold).value
        for name in (test.first, test.second)
    )
    ahead, behind = (one, two) if test.better == test.first else (two, one)
    sign = 1 if test.better == test.first else -1
    return (
        f"PCK@{test.threshold:g} {share(ahead)} against {share(behind)} "
        f"(difference {interval(test.difference, share, sign)}, {p_value(test)})"
    )


def _difference(test: PairedTest) -> str:
    """Phrases first minus second, or the reverse, so that the value is not negative."""
    sign = -1 if test.difference.value < 0 else 1
    write = share if test.quantity == "pck" else px
    ahead = f" in favour of {test.better}" if test.better else ""
    return f"{interval(test.difference, write, sign)}{ahead} ({p_value(test)})"


def _thresholds(tests: Sequence[PairedTest]) -> str:
    return join([f"{t.threshold:g}" for t in tests])


def _error_verdict(test: PairedTest) -> str:
    if math.isnan(test.difference.value):
        return (
            f"The mean errors of {test.first} and {test.second} cannot be compared: a prediction "
            "is lost, which is an infinite error, or nothing is labelled."
        )
    if not test.is_clear:
        return (
            f"The mean errors of {test.first} and {test.second} cannot be told apart: the "
            f"difference is {_difference(test)}{_disregarding(test.order)}."
        )
    worse = test.second if test.better == test.first else test.first
    sign = -1 if test.difference.value < 0 else 1
    return (
        f"The mean error of {test.better} is smaller than that of {worse} by "
        f"{interval(test.difference, px, sign)} ({p_value(test)}){_disregarding(test.order)}."
    )


def _scores(comparison: Comparison, name: str, order: str) -> str:
    pck = _curve(comparison, name, order).pck
    scores = [f"{interval(pck.at(t), share)} at {t:g}" for t in comparison.quoted]
    return f"{name} has a PCK of {join(scores)}{_disregarding(order)}."


def _curves(comparison: Comparison) -> list[str]:
    """States every quoted score, and where curves cross."""
    sentences = [_scores(comparison, c.method, c.order) for c in comparison.curves]
    for test in comparison.tests:
        if test.point or test.quantity != "pck" or test.threshold != comparison.quoted[0]:
            continue
        crossings = _crossings(comparison, test)
        if crossings:
            sentences.append(
                f"The curves of {test.first} and {test.second}{_disregarding(test.order)} cross "
                f"{'once' if len(crossings) == 1 else f'{len(crossings)} times'}, at "
                f"{join([f'{t:g}' for t in crossings[:5]])}"
                f"{' and further on' if len(crossings) > 5 else ''}."
            )
    return sentences


def _crossings(comparison: Comparison, test: PairedTest) -> list[float]:
    """Lists thresholds at which the other method has come to be ahead; ties are passed over."""
    one, two = (_curve(comparison, m, test.order).pck for m in (test.first, test.second))
    ahead = np.sign(one.value - two.value)
    places = np.flatnonzero(ahead != 0)
    places = places[~np.isnan(ahead[places])]
    turns = np.flatnonzero(np.diff(ahead[places]) != 0) + 1
    return [float(one.thresholds[places[i]]) for i in turns]


def _ceiling(comparison: Comparison) -> list[str]:
    """Holds ordered scores against the best that any model can reach."""
    if comparison.ceiling is None:
        return []
    sentences = [
        "No picture shows which of two interchangeable points is which, so that a score that minds "
        "their order has a ceiling below 1, here with the interval in which the score of a model "
        "that knows everything else would fall by chance."
    ]
    for t in comparison.quoted:
        best = comparison.ceiling.at(t)
        reached = []
        for method in comparison.methods:
            value = _curve(comparison, method.name, ORDERED).pck.at(t).value
            place = "above" if value > best.high else "below" if value < best.low else "within"
            reached.append(f"{method.name} has {share(value)}, {place} it")
        sentences.append(
            f"At {t:g} the ceiling is {share(best.value)} ({share(best.low)} to "
            f"{share(best.high)}): {'; '.join(reached)}."
        )
    return sentences


def _keypoints(comparison: Comparison) -> list[str]:
    """Says at which keypoints methods differ, which is hardest, and which are biased."""
    sentences = []
    tests = [t for t in comparison.tests if t.point and t.quantity == "pck"]
    for first, second in dict.fromkeys((t.first, t.second) for t in tests):
        pair = [t for t in tests if (t.first, t.second) == (first, second)]
        sentences.append(_where(pair))
    for method in comparison.methods:
        own = [k for k in comparison.keypoints if k.method == method.name and k.count]
        if own:
            worst, best = (pick(own, key=lambda k: k.median.value) for pick in (max, min))
            if len(own) > 1:
                sentences.append(
                    f"{method.name} is furthest off at {worst.point} (median "
                    f"{interval(worst.median, px)}) and nearest at {best.point} "
                    f"({interval(best.median, px)})."
                )
            sentences.append(_biases(method.name, own))
    return sentences


def _where(tests: Sequence[PairedTest]) -> str:
    first, second, threshold = tests[0].first, tests[0].second, tests[0].threshold
    parts = []
    for name in (first, second):
        won = [t for t in tests if t.is_clear and t.better == name]
        if won:
            gains = [
                f"{t.point} ({interval(t.difference, share, 1 if name == first else -1)})"
                for t in won
            ]
            parts.append(f"{name} is ahead at {join(gains)}")
    if not parts:
        return f"At no single keypoint can {first} and {second} be told apart by PCK@{threshold:g}."
    others = [t.point for t in tests if not t.is_clear]
    rest = f"; at {join(others)} no difference can be told" if others else ""
    return f"By PCK@{threshold:g}, {' and '.join(parts)}{rest}."


def _biases(method: str, keypoints: Sequence[KeypointErrors]) -> str:
    """Names the points that are off to one side on average."""
    found = []
    for k in keypoints:
        sides = []
        for bias, names in ((k.bias_x, ("left", "right")), (k.bias_y, ("up", "down"))):
            if bias.excludes(0.0):
                sign = -1 if bias.value < 0 else 1
                sides.append(f"{interval(bias, px, sign)} {names[sign > 0]}")
        if sides:
            found.append(f"{k.point} {join(sides)}")
    if not found:
        return f"No keypoint of {method} shows a bias: every interval of the mean offset holds 0."
    return (
        f"Mean offsets of {method} whose interval excludes 0 (each by itself, not adjusted): "
        f"{'; '.join(found)}."
    )


def _statistics(comparison: Comparison) -> list[str]:
    """Says what was counted, how intervals and tests were made and what they leave out."""
    first, groups = comparison.methods[0], comparison.groups
    labelled = int((~np.isnan(first.errors)).sum())
    left_out = int(((~np.isnan(first.errors)).any(axis=1) & ~(first.reference > 0)).sum())
    sentences = [
        f"Split {comparison.split!r}: {len(first.errors)} examples with {labelled} labelled points "
        f"in {groups} independent groups.",
        f"Intervals of {percent(comparison.level)} are percentiles of a bootstrap that draws whole "
        "groups, the same for all methods; where a share is exactly 0 or 1, the exact bound.",
    ]
    if comparison.tests:
        whole = sum(not t.point for t in comparison.tests)
        sentences.append(
            "p-values are of two-sided sign-flip tests over groups, by Holm's procedure adjusted "
            f"for {whole} tests on all points and, apart, {len(comparison.tests) - whole} on "
            "single ones."
        )
    sentences.append(
        "Both say how far other pictures of the same kind may move the numbers, not how far "
        "another seed of the training may."
    )
    if groups < 2:
        sentences.append("With a single group nothing is independent, so there are no intervals.")
    elif groups < _FEW_GROUPS:
        sentences.append(
            f"With {groups} groups the intervals are rough and tend to be too narrow, and no test "
            f"can give a p-value below {2 / 2**groups:.2g}."
        )
    if left_out:
        sentences.append(
            f"{left_out} examples have no reference length (a single labelled point) and do not "
            "count for PCK."
        )
    if comparison.order == UNORDERED:
        sentences.append(
            "Keypoints, failures, calibration and rows take the labels of interchangeable points "
            "in the order that suits the prediction, since no picture shows their order."
        )
    return sentences

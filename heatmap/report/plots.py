"""Figures of a comparison's numbers, as matplotlib draws them."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed, and none is looked for

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from heatmap.report import explanations
from heatmap.report.findings import (
    ORDERED,
    UNORDERED,
    Ablation,
    Comparison,
    Interval,
    KeypointErrors,
)

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_WIDTH = 6.4  # inches
_GREY = "0.4"
_DRAWN = 1e-3  # of the largest error


def plain(text: str) -> str:
    """Keeps matplotlib from reading names as formulas, or breaking lines at their whim."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")


def colour(index: int) -> str:
    """Returns the colour of a method by its place."""
    return COLOURS[index % len(COLOURS)]


def pck(comparison: Comparison) -> Figure:
    """Draws PCK over the threshold with its bands, and the ceiling where there is one."""
    orders = list(dict.fromkeys(curve.order for curve in comparison.curves))
    figure, axes = plt.subplots(
        1, len(orders), figsize=(_WIDTH * (1.5 if len(orders) > 1 else 1), 4), squeeze=False
    )
    names = [method.name for method in comparison.methods]
    for axis, order in zip(axes[0], orders, strict=True):
        for curve in comparison.curves:
            if curve.order == order:
                ink, band = colour(names.index(curve.method)), curve.pck
                axis.fill_between(band.thresholds, band.low, band.high, color=ink, alpha=0.2, lw=0)
                axis.plot(band.thresholds, band.value, color=ink, label=plain(curve.method))
        if order == ORDERED and comparison.ceiling is not None:
            band = comparison.ceiling
            axis.fill_between(band.thresholds, band.low, band.high, color=_GREY, alpha=0.2, lw=0)
            axis.plot(band.thresholds, band.value, "--", color=_GREY, label="ceiling")
        for threshold in comparison.quoted:
            axis.axvline(threshold, color="0.85", linewidth=0.8, zorder=0)
        axis.set(xlabel="threshold, share of the extent of the true points", ylim=(-0.02, 1.02))
        axis.set_xlim(0, float(comparison.curves[0].pck.thresholds[-1]))
        unordered = ", order of pairs disregarded" if order == UNORDERED else ""
        axis.set_title(f"PCK on {plain(comparison.split)}{unordered}", fontsize=10)
        axis.legend(loc="lower right", fontsize=8)
    axes[0, 0].set_ylabel("share of points that are right")
    return _finished(figure)


def keypoints(comparison: Comparison) -> Figure:
    """Draws the median error and the PCK of each keypoint as bars with intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(_WIDTH * 1.5, 3.6))
    place = comparison.quoted.index(min(comparison.quoted, key=lambda t: abs(t - 0.1)))
    _bars(axes[0], comparison, [k.median for k in comparison.keypoints])
    _bars(axes[1], comparison, [k.pck[place] for k in comparison.keypoints])
    axes[0].set_title("median error, px", fontsize=10)
    axes[1].set_title(f"PCK@{comparison.quoted[place]:g}", fontsize=10)
    axes[1].set_ylim(0, 1.02)
    axes[0].legend(fontsize=8)
    return _finished(figure)


def _bars(axis, comparison: Comparison, values: Sequence[Interval]) -> None:
    points, methods = comparison.methods[0].points.names, comparison.methods
    width = 0.8 / len(methods)
    for m, method in enumerate(methods):
        own = values[m * len(points) : (m + 1) * len(points)]
        at = np.arange(len(points)) + (m - (len(methods) - 1) / 2) * width
        axis.bar(
            at,
            _finite([v.value for v in own]),
            width,
            color=colour(m),
            alpha=0.8,
            label=plain(method.name),
        )
        low, high = _finite([v.low for v in own]), _finite([v.high for v in own])
        axis.vlines(at, low, high, color="0.2", linewidth=1)
    axis.set_xticks(np.arange(len(points)), [plain(p) for p in points], rotation=30, ha="right")


def _finite(values: Sequence[float]) -> np.ndarray:
    """Leaves out what cannot be drawn."""
    array = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def bias(comparison: Comparison) -> Figure:
    """Draws every error as a dot and the mean offset of each keypoint as an arrow, true at 0."""
    from heatmap.report.keypoint_errors import offsets

    methods, points = comparison.methods, comparison.methods[0].points.names
    figure, axes = plt.subplots(
        len(methods), len(points), figsize=(2.1 * len(points), 2.3 * len(methods)), squeeze=False
    )
    found = {m.name: offsets(m, comparison.order) for m in methods}
    pooled = np.abs(np.concatenate([o.ravel() for o in found.values()]))
    reach = max(float(np.nanquantile(pooled, 0.98)) if np.isfinite(pooled).any() else 1.0, 1e-3)
    for m, method in enumerate(methods):
        for k, point in enumerate(points):
            axis = axes[m, k]
            axis.plot(*found[method.name][:, k].T, ".", color=colour(m), markersize=2, alpha=0.5)
            _arrow(axis, comparison.keypoints[m * len(points) + k])
            axis.axhline(0, color="0.8", linewidth=0.6, zorder=0)
            axis.axvline(0, color="0.8", linewidth=0.6, zorder=0)
            axis.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
            axis.tick_params(labelsize=6)
            if m == 0:
                axis.set_title(plain(point), fontsize=8)
        axes[m, 0].set_ylabel(plain(method.name), fontsize=8)
    figure.suptitle("predicted - true, px (right and down are positive); arrow: mean", fontsize=9)
    return _finished(figure)


def _arrow(axis, found: KeypointErrors) -> None:
    x, y = found.bias_x, found.bias_y
    if math.isnan(x.value):
        return
    axis.annotate("", (x.value, y.value), (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.5})
    axis.plot([x.low, x.high], [y.value, y.value], color="black", linewidth=0.8)
    axis.plot([x.value, x.value], [y.low, y.high], color="black", linewidth=0.8)


def calibration(comparison: Comparison) -> Figure:
    """Draws what share of points is right, and their median error, over score and entropy."""
    figure, axes = plt.subplots(2, 2, figsize=(_WIDTH * 1.4, 5.4), squeeze=False)
    names = [method.name for method in comparison.methods]
    for found in comparison.calibrations:
        column, ink = ("score", "entropy").index(found.signal), colour(names.index(found.method))
        x = [b.mean for b in found.bins]
        low, value, high = (
            [getattr(b.right, end) for b in found.bins] for end in ("low", "value", "high")
        )
        axes[0, column].plot(x, value, "o-", color=ink, markersize=4, label=plain(found.method))
        axes[0, column].vlines(x, _finite(low), _finite(high), color=ink, linewidth=1)
        axes[1, column].plot(
            x, _finite([b.median_error for b in found.bins]), "o-", color=ink, markersize=4
        )
        axes[1, column].set_xlabel({"score": "score", "entropy": "entropy, nats"}[found.signal])
    axes[0, 0].set_ylabel(f"share right at {comparison.threshold:g}")
    axes[1, 0].set_ylabel("median error, px")
    for axis in axes[0]:
        axis.set_ylim(-0.02, 1.02)
    axes[0, 0].legend(fontsize=8)
    return _finished(figure)


def training(comparison: Comparison) -> Figure:
    """Draws the losses of each method in a panel of its own: they do not compare."""
    logged = [(m, method) for m, method in enumerate(comparison.methods) if method.log]
    figure, axes = plt.subplots(
        1, len(logged), figsize=(_WIDTH * 0.75 * len(logged), 3.4), squeeze=False
    )
    for axis, (m, method) in zip(axes[0], logged, strict=True):
        steps = [line.step for line in method.log]
        axis.plot(
            steps, [line.train_loss for line in method.log], ":", color=colour(m), label="training"
        )
        axis.plot(
            steps,
            _finite([line.val_loss for line in method.log]),
            "-",
            color=colour(m),
            label="validation",
        )
        if min(line.train_loss for line in method.log) > 0:
            axis.set_yscale("log")
        axis.set(xlabel="step", ylabel=plain(method.config.loss.name))
        axis.set_title(plain(method.name), fontsize=10)
        axis.legend(fontsize=8)
    return _finished(figure)


def budget(comparison: Comparison) -> Figure:
    """Draws what each part adds to each method's error, on a logarithmic axis: parts differ much.

    A part below a thousandth of the largest error is written, not drawn.
    """
    figure, axes = plt.subplots(1, 2, figsize=(_WIDTH * 1.4, 3.6), squeeze=False)
    parts = list(dict.fromkeys(part.name for b in comparison.budgets for part in b.parts))
    width = 0.8 / max(1, len(parts))
    largest = max((b.rmse for b in comparison.budgets if math.isfinite(b.rmse)), default=1.0) or 1.0
    for axis, only_right in zip(axes[0], (False, True), strict=True):
        budgets = [b for b in comparison.budgets if b.only_right == only_right and b.count]
        for i, name in enumerate(parts):
            at = np.arange(len(budgets)) + (i - (len(parts) - 1) / 2) * width
            rmse = [next((p.rmse for p in b.parts if p.name == name), math.nan) for b in budgets]
            drawn = np.where(np.array(rmse) >= largest * _DRAWN, rmse, np.nan)
            axis.bar(at, drawn, width, color=colour(i + 2), label=name)
            for x, value in zip(at, rmse, strict=True):
                if not math.isnan(value):
                    y = max(value, largest * _DRAWN)
                    axis.text(x, y, f"{value:.2g}", ha="center", va="bottom", fontsize=7)
        axis.set_yscale("log")
        axis.set_ylim(largest * _DRAWN, largest * 3)
        axis.set_xlim(-0.6, max(1, len(budgets)) - 0.4)
        axis.set_xticks(range(len(budgets)), [plain(b.method) for b in budgets])
        which = f"points right at {comparison.threshold:g}" if only_right else "all points"
        axis.set_title(f"{which}: root mean square of each part, px", fontsize=10)
    if parts:
        axes[0, 0].legend(fontsize=8)
    return _finished(figure)


def ablation(found: Ablation) -> Figure:
    """Draws a share of right points and an error of every setting, with the spread of the seeds."""
    shown = dict.fromkeys(
        place
        for place in (0, explanations.telling_metric(found), _first_error(found))
        if place is not None
    )
    if len(found.fields) == 2 and len(found.rows) > 2:
        return _grids(found, list(shown))
    figure, axes = plt.subplots(
        1,
        len(shown),
        figsize=(_WIDTH * 1.4, 0.9 + 0.35 * len(found.rows)),
        squeeze=False,
        sharey=True,
    )
    for axis, place in zip(axes[0], shown, strict=True):
        values = _finite([row.means[place] for row in found.rows])
        spread = np.nan_to_num(_finite([row.deviations[place] for row in found.rows]))
        drawn = axis.barh(range(len(values)), values, xerr=spread, color=COLOURS[0], alpha=0.8)
        axis.bar_label(drawn, [f" {v:.3g}" for v in values], fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(plain(found.metrics[place]), fontsize=10)
    names = [_setting(found, row.settings) for row in found.rows]
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0, 0].invert_yaxis()
    seeds = any(math.isfinite(d) for row in found.rows for d in row.deviations)
    by = " (lines: standard deviation between seeds)" if seeds else ""
    figure.suptitle(f"{plain(found.name)}{by}", fontsize=10)
    return _finished(figure)


def _first_error(found: Ablation) -> int | None:
    errors = (i for i, m in enumerate(found.metrics) if explanations.fewer_is_better(m))
    return next(errors, None)


def _setting(found: Ablation, values: Sequence[str]) -> str:
    pairs = zip(found.fields, values, strict=True)
    return plain(", ".join(f"{f.rsplit('.', 1)[-1]}={v}" for f, v in pairs if v) or "defaults")


def _grids(found: Ablation, places: Sequence[int]) -> Figure:
    """Draws two varied fields as rows and columns, the scores in the cells."""
    rows, columns = (list(dict.fromkeys(r.settings[i] for r in found.rows)) for i in (1, 0))
    figure, axes = plt.subplots(
        1,
        len(places),
        figsize=(_WIDTH * 1.6, 1.4 + 0.4 * len(rows)),
        squeeze=False,
        sharey=True,
    )
    for axis, place in zip(axes[0], places, strict=True):
        cells = np.full((len(rows), len(columns)), np.nan)
        for row in found.rows:
            cells[rows.index(row.settings[1]), columns.index(row.settings[0])] = row.means[place]
        better = "_r" if explanations.fewer_is_better(found.metrics[place]) else ""
        axis.imshow(cells, aspect="auto", cmap=f"cividis{better}", alpha=0.35)
        for (i, j), value in np.ndenumerate(cells):
            axis.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8)
        axis.set_xticks(range(len(columns)), [plain(c) for c in columns], fontsize=8)
        axis.set_xlabel(plain(found.fields[0]))
        axis.set_title(plain(found.metrics[place]), fontsize=10)
    axes[0, 0].set_yticks(range(len(rows)), [plain(r) for r in rows], fontsize=8)
    axes[0, 0].set_ylabel(plain(found.fields[1]))
    figure.suptitle(plain(found.name), fontsize=10)
    return _finished(figure)


def _finished(figure: Figure) -> Figure:
    figure.tight_layout()
    return figure

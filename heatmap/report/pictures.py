"""Figures of pictures: truth, predictions and maps, laid over what the network sees."""

from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed, and none is looked for

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from heatmap import geometry
from heatmap.keypoints import KeypointSet
from heatmap.report.findings import Comparison, Example, Stage
from heatmap.report.plots import colour, plain

_MARKS = ("+", "x", "1", "2", "3", "4", ".")
_SIDE = 2.4  # inches of a panel
_COLUMNS, _LEGEND = 4, 6  # panels, and names, beside one another on a contact sheet


def examples(comparison: Comparison, shown: Sequence[Example]) -> Figure:
    """Draws each picture with the truth (o) and every method's points, and their maps beside it.

    Args:
      comparison: of the methods.
      shown: at least one.
    """
    methods = comparison.methods
    with_maps = [m for m in range(len(methods)) if shown[0].maps[m] is not None]
    figure, axes = _panels(len(shown), 1 + len(with_maps))
    for row, example in enumerate(shown):
        _points(axes[row, 0], comparison, example)
        axes[row, 0].set_title(plain(example.id)[-40:], fontsize=7)
        for column, m in enumerate(with_maps, start=1):
            maps = example.maps[m]
            assert maps is not None  # chosen above
            _frame(axes[row, column], example.picture, dim=0.5)
            x0, y0, x1, y1 = example.boxes[m]
            axes[row, column].imshow(
                maps.max(axis=-1), cmap="magma", alpha=0.6, extent=(x0, x1, y1, y0), vmin=0, vmax=1
            )
            _limit(axes[row, column], example.picture)
            axes[row, column].set_title(f"maps of {plain(methods[m].name)}", fontsize=7)
    marks = "   ".join(f"{_MARKS[m % len(_MARKS)]} {x.name}" for m, x in enumerate(methods))
    figure.suptitle(f"o truth   {plain(marks)}", fontsize=9)
    return _finished(figure, len(shown))


def _points(axis, comparison: Comparison, example: Example) -> None:
    """Marks true points by rings, each method's by its sign, both in the method's colour."""
    _frame(axis, example.picture, dim=1.0)
    for x, y in example.truth:
        axis.plot(x, y, "o", color="#F0E442", markersize=6, fillstyle="none")
    for m in range(len(comparison.methods)):
        mark, ink = _MARKS[m % len(_MARKS)], colour(m)
        for truth, predicted in zip(example.truth, example.predicted[m], strict=True):
            axis.plot(*np.stack([truth, predicted], axis=-1), color=ink, linewidth=0.7)
            axis.plot(*predicted, mark, color=ink, markersize=7)
    _limit(axis, example.picture)


def maps(example: Example, m: int, points: KeypointSet) -> Figure:
    """Draws the map of every keypoint that one method has learned, over the picture.

    Args:
      example: with maps of this method.
      m: the method's place.
      points: names.
    """
    heatmaps = example.maps[m]
    if heatmaps is None:
        raise ValueError(f"method {m} has no maps")
    figure, axes = _panels(1, points.count)
    x0, y0, x1, y1 = example.boxes[m]
    for k, name in enumerate(points.names):
        _frame(axes[0, k], example.picture, dim=0.5)
        axes[0, k].imshow(
            heatmaps[..., k], cmap="magma", alpha=0.7, extent=(x0, x1, y1, y0), vmin=0, vmax=1
        )
        axes[0, k].plot(*example.truth[k], "o", color="white", markersize=6, fillstyle="none")
        axes[0, k].set_title(plain(name), fontsize=8)
        _limit(axes[0, k], example.picture)
    return _finished(figure, 1)


def stages(shown: Sequence[Stage], points: KeypointSet) -> Figure:
    """Draws how maps grow: a column for each moment of training, a row for each keypoint.

    Args:
      shown: of one method; the first is drawn.
      points: names.
    """
    stage = shown[0]
    figure, axes = _panels(points.count, len(stage.steps))
    x0, y0, x1, y1 = geometry.image_box(stage.picture.shape[:2])
    for k, name in enumerate(points.names):
        for s, step in enumerate(stage.steps):
            axis = axes[k, s]
            _frame(axis, stage.picture, dim=0.5)
            box = (x0, x1, y1, y0)
            axis.imshow(stage.maps[s, :, :, k], "magma", alpha=0.7, extent=box, vmin=0, vmax=1)
            axis.plot(*stage.truth[k], "o", color="white", markersize=6, fillstyle="none")
            _limit(axis, stage.picture)
            axis.set_title(f"{plain(name)}, step {step}", fontsize=7)
    figure.suptitle(
        f"{plain(stage.method)}, {plain(stage.id)[-60:]}; each map by its own largest value",
        fontsize=9,
    )
    return _finished(figure, points.count)


def contact(shown: Sequence[Example], points: KeypointSet) -> Figure:
    """Draws augmented examples in a grid, with their targets over them.

    A ring is a label, in the colour of its point, a cross what is read off its target, which is
    laid over the picture in that colour.

    Args:
      shown: at least one, of one method, whose maps are targets.
      points: names and skeleton.
    """
    columns = min(_COLUMNS, len(shown))
    figure, axes = _panels(-(-len(shown) // columns), columns)
    colours = plt.colormaps["tab10"](np.arange(points.count) % 10)
    for axis, example in zip(axes.ravel(), shown, strict=False):
        _frame(axis, example.picture, dim=1.0)
        if (maps := example.maps[0]) is not None:
            x0, y0, x1, y1 = example.boxes[0]
            tint = colours[maps.argmax(axis=-1)]  # [h, w, 4]
            tint[..., 3] = 0.7 * maps.max(axis=-1)
            axis.imshow(tint, extent=(x0, x1, y1, y0))
        for a, b in points.skeleton:
            axis.plot(*example.truth[[a, b]].T, color="0.6", linewidth=0.7)
        for k, ink in enumerate(colours):
            axis.plot(*example.truth[k], "o", color=ink, markersize=7, fillstyle="none")
            axis.plot(*example.predicted[0, k], "+", color=ink, markersize=6)
        axis.set_title(plain(example.id)[-40:], fontsize=6)
        _limit(axis, example.picture)
    for name, ink in zip(points.names, colours, strict=True):
        axes[0, 0].plot([], [], "o", color=ink, fillstyle="none", label=plain(name))
    legend_rows = -(-points.count // _LEGEND)
    figure.legend(loc="upper center", ncols=_LEGEND, fontsize=8, frameon=False)
    figure.tight_layout(
        pad=0.4, rect=(0, 0, 1, 1 - (0.1 + 0.2 * legend_rows) / figure.get_figheight())
    )
    return figure


def _panels(rows: int, columns: int):
    figure, axes = plt.subplots(
        rows, columns, figsize=(_SIDE * columns, (_SIDE + 0.2) * rows + 0.3), squeeze=False
    )
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes


def _frame(axis, picture: np.ndarray, dim: float) -> None:
    axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, alpha=dim)


def _limit(axis, picture: np.ndarray) -> None:
    """Shows the picture and no more, wherever points and maps lie."""
    x0, y0, x1, y1 = geometry.image_box(picture.shape[:2])
    axis.set_xlim(x0, x1)
    axis.set_ylim(y1, y0)


def _finished(figure: Figure, rows: int) -> Figure:
    figure.tight_layout(pad=0.4, h_pad=1.5, rect=(0, 0, 1, 1 - 0.12 / rows))  # below the title
    return figure

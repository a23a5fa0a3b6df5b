"""The validation sheet: what the network sees, what it says and where the points are."""

import pathlib

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed, and none is looked for

from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from heatmap import geometry, workdir
from heatmap.keypoints import KeypointSet


def draw(
    images: np.ndarray,
    maps: np.ndarray | None,
    predicted: np.ndarray,
    truth: np.ndarray,
    labelled: np.ndarray,
    points: KeypointSet,
    title: str,
) -> np.ndarray:
    """Draws one row per picture: the input with its points, then each point's map over it.

    Args:
      images: [N, H, W, C] uint8, the network's input.
      maps: [N, h, w, K] raw, or None for a model that gives coordinates only.
      predicted: [N, K, 2] in input pixels.
      truth: [N, K, 2] in input pixels.
      labelled: [N, K] bool.
      points: names and skeleton.
      title: above the sheet.

    Returns:
      The sheet, [rows, columns, 3] uint8.
    """
    maps = np.zeros((len(images), 1, 1, 0)) if maps is None else maps
    columns = 1 + maps.shape[-1]
    figure, axes = plt.subplots(
        len(images), columns, figsize=(2.1 * columns, 2.1 * len(images)), squeeze=False
    )
    colours = plt.colormaps["tab10"](np.arange(points.count) % 10)
    for row, image in enumerate(images):
        axes[row, 0].imshow(image.squeeze(), cmap="gray")
        for a, b in points.skeleton:
            axes[row, 0].plot(*predicted[row, [a, b]].T, color="0.75", linewidth=0.7)
        for k in range(points.count):
            axes[row, 0].plot(*predicted[row, k], "+", color=colours[k], markersize=8)
            if labelled[row, k]:
                axes[row, 0].plot(
                    *truth[row, k], "o", color=colours[k], markersize=7, fillstyle="none"
                )
        for k in range(columns - 1):
            _overlay(axes[row, 1 + k], image, maps[row, :, :, k], predicted[row, k])
            if row == 0:
                axes[0, 1 + k].set_title(points.names[k], fontsize=8, color=colours[k])
        axes[row, 0].set_xlim(-0.5, image.shape[1] - 0.5)
        axes[row, 0].set_ylim(image.shape[0] - 0.5, -0.5)
    axes[0, 0].set_title("o truth   + predicted", fontsize=8)
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 1 - 0.1 / len(images)))  # below the title
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    sheet = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    plt.close(figure)
    return sheet


def _overlay(axis, image: np.ndarray, heatmap: np.ndarray, point: np.ndarray) -> None:
    """Lays one map over its picture; both cover the same area, whatever their resolutions."""
    size = image.shape[:2]
    x0, y0, x1, y1 = geometry.image_box(size)
    axis.imshow(image.squeeze(), cmap="gray", alpha=0.5)
    axis.imshow(heatmap, cmap="magma", alpha=0.6, extent=(x0, x1, y1, y0))
    axis.plot(*point, "+", color="white", markersize=7)
    axis.set_xlim(x0, x1)
    axis.set_ylim(y1, y0)


def save(path: pathlib.Path, sheet: np.ndarray) -> None:
    """Writes a sheet as PNG."""
    with workdir.replacing(path) as temporary:
        plt.imsave(temporary, sheet, format="png")

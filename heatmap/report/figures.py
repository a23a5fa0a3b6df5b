"""Pictures of the page: layers of one drawing, each of which can be switched off.

A figure is a small SVG in pixels of its picture, where a whole number is a pixel's centre: the
picture, the maps over it, rings at the truth, and each method's marks. Pictures travel inside the
page as data URIs.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from heatmap import geometry
from heatmap.report import phrases
from heatmap.report.findings import Case, Comparison, Example, ImageRow, Stage

_LONGEST = 512  # px: larger pictures are embedded smaller
_FAINT = 0.04  # what a map holds of less is not drawn at all
_NOTES = 4  # wrong points described below a picture
_MARK = 0.028  # half the size of a mark, as a share of the picture's longer side
# By the number of the method: as different in form as in colour, so that neither is needed alone.
_FORMS = (
    "M-{s},0H{s}M0,-{s}V{s}",  # +
    "M-{d},-{d}L{d},{d}M-{d},{d}L{d},-{d}",  # ×
    "M0,-{s}L{s},{d}H-{s}Z",  # triangle
    "M-{d},-{d}H{d}V{d}H-{d}Z",  # square
    "M0,-{s}L{s},0L0,{s}L-{s},0Z",  # diamond
)


def example(
    comparison: Comparison, shown: Example, key: str, cases: tuple[Case, ...] = ()
) -> dict[str, Any]:
    """Describes a picture with all its layers.

    Args:
      comparison: of the methods.
      shown: the picture.
      key: begins the id of the figure, unique to its place on the page.
      cases: points of this picture to be marked as wrong.

    Returns:
      What the template lays out.
    """
    row = next(image for image in comparison.images if image.row == shown.row)
    return _frame(shown.picture, shown.truth) | {
        "key": f"{key}-{shown.row}",
        "id": shown.id,
        "instance": shown.instance,
        "notes": _notes(comparison, cases) if cases else _errors(comparison, row),
        "wrong": [
            tuple(shown.truth[case.point])
            for case in cases
            if np.isfinite(shown.truth[case.point]).all()
        ],
        "marks": [marks(points, m, shown.picture) for m, points in enumerate(shown.predicted)],
        "vectors": [_vectors(shown.truth, points) for points in shown.predicted],
        "maps": [
            {"method": m, "box": box, "layers": overlays(maps)}
            for m, (maps, box) in enumerate(zip(shown.maps, shown.boxes, strict=True))
            if maps is not None
        ],
    }


def _notes(comparison: Comparison, cases: Sequence[Case]) -> list[str]:
    """Says of each wrong point how far off both methods are, and how unsure."""
    notes = []
    for case in cases[:_NOTES]:
        unsure = [phrases.number(e) for e in case.entropies if not np.isnan(e)]
        entropy = f"; entropy {phrases.join(unsure)} nats" if unsure else ""
        name = comparison.methods[0].points.names[case.point]
        notes.append(f"{name}: {phrases.join([phrases.px(e) for e in case.errors])}{entropy}")
    left = len(cases) - _NOTES
    return [*notes, f"and {left} more"] if left > 0 else notes


def _errors(comparison: Comparison, row: ImageRow) -> list[str]:
    """Says how far off each method is on average."""
    pairs = zip(comparison.methods, row.error, strict=True)
    return [f"{method.name}: {phrases.px(error)} on average" for method, error in pairs]


def stage(shown: Stage) -> dict[str, Any]:
    """Describes one picture's maps at several moments of training."""
    box = geometry.image_box(shown.picture.shape[:2])
    return _frame(shown.picture, shown.truth) | {
        "method": shown.method,
        "id": shown.id,
        "steps": [
            {"step": step, "box": box, "layers": overlays(maps)}
            for step, maps in zip(shown.steps, shown.maps, strict=True)
        ],
    }


def _frame(picture: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    height, width = picture.shape[:2]
    return {
        "height": height,
        "width": width,
        "picture": embed(Image.fromarray(picture.squeeze())),
        "radius": round(1.2 * _MARK * max(height, width), 2),
        "truth": [
            (k, round(float(x), 2), round(float(y), 2))
            for k, (x, y) in enumerate(truth)
            if np.isfinite([x, y]).all()
        ],
    }


def embed(picture: Image.Image) -> str:
    """Returns a picture as a data URI, at most 512 pixels long."""
    picture = picture.copy()
    picture.thumbnail((_LONGEST, _LONGEST))
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def overlays(maps: np.ndarray) -> list[str]:
    """Colours maps [h, w, K] in [0, 1] as layers that let the picture show through.

    Returns:
      1 + K data URIs: the largest value of all points, then each point's map.
    """
    return [overlay(maps.max(axis=-1)), *(overlay(m) for m in np.moveaxis(maps, -1, 0))]


def overlay(values: np.ndarray) -> str:
    """Colours one map [h, w] in [0, 1]: the higher, the brighter and the less transparent."""
    values = np.nan_to_num(values).clip(0, 1)
    colours = colormaps["plasma"](values, bytes=True)
    colours[..., 3] = np.where(values < _FAINT, 0, 210 * values**0.7)
    return embed(Image.fromarray(colours))


def form(method: int, size: float) -> str:
    """Returns the mark of a method as an SVG path about the origin."""
    shape = _FORMS[method % len(_FORMS)]
    return shape.format(s=round(size, 2), d=round(0.75 * size, 2))


def marks(points: np.ndarray, method: int, picture: np.ndarray) -> dict[str, Any]:
    """Returns the marks of a method's points [K, 2]; a lost point has none."""
    return {
        "path": form(method, _MARK * max(picture.shape[:2])),
        "at": [
            (k, round(float(x), 2), round(float(y), 2))
            for k, (x, y) in enumerate(points)
            if np.isfinite([x, y]).all()
        ],
    }


def _vectors(truth: np.ndarray, predicted: np.ndarray) -> str:
    """Returns lines from the truth to the predictions as one SVG path."""
    ends = np.concatenate([truth, predicted], axis=-1)
    ends = ends[np.isfinite(ends).all(axis=-1)]
    return "".join(f"M{x:.2f},{y:.2f}L{u:.2f},{v:.2f}" for x, y, u, v in ends)

"""Pictures and videos with the predicted points drawn on them."""

import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image, ImageDraw

from heatmap import workdir
from heatmap.errors import UserError
from heatmap.inference.files import Stream
from heatmap.inference.instances import Instances
from heatmap.inference.tables import Meaning
from heatmap.report.plots import COLOURS

_FOLDER = "overlay"


def write(
    folder: pathlib.Path, stream: Stream, meaning: Meaning, sources: Iterable, since: float
) -> None:
    """Draws every picture and video that has not been drawn yet.

    Args:
      folder: OUT; files go to its folder overlay/, under the names of their sources.
      stream: gives the instances.
      meaning: of them; with a calibration, discs of the highest level that it has are drawn.
      sources: `input_pipeline.sources.Source`.
      since: seconds of the epoch; what was drawn before is drawn anew.
    """
    by_name = {source.name: source for source in sources}
    folders = {name: os.path.abspath(source.path) for name, source in by_name.items()}
    shared = os.path.commonpath([os.path.dirname(path) for path in folders.values()])
    names = {name: os.path.relpath(path, shared) for name, path in folders.items()}
    for found in stream():
        for name in dict.fromkeys(found.source.tolist()):
            source = by_name[name]
            if not source.is_video:
                path = _named(folder / _FOLDER / names[name], ".png")
                _picture(path, source, found.take(found.source == name), meaning, since)
    for source in by_name.values():
        if source.is_video:
            path = _named(folder / _FOLDER / names[source.name], ".mp4")
            _video(path, source, stream, meaning, since)


def _named(path: pathlib.Path, suffix: str) -> pathlib.Path:
    """Gives a drawing its suffix; a.jpg becomes a.jpg.png, so that a.png may lie beside it."""
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def _is_there(path: pathlib.Path, source, since: float) -> bool:
    """Says whether a drawing is there, and younger than its source and than `since`."""
    if not path.exists():
        return False
    told = source.path.stat()  # a copy may have its original's time, but not its entry
    return path.stat().st_mtime >= max(told.st_mtime, told.st_ctime, since)


def _picture(path: pathlib.Path, source, found: Instances, meaning: Meaning, since: float) -> None:
    from input_pipeline import sources

    if _is_there(path, source, since):
        return
    try:
        pixels = sources.read_picture(source.path, meaning.config.data.max_megapixels)
    except UserError:
        return  # it was told when it was read
    with workdir.replacing(path) as temporary:
        Image.fromarray(draw(pixels, found, meaning)).save(temporary, format="png")


def _video(path: pathlib.Path, source, stream: Stream, meaning: Meaning, since: float) -> None:
    from input_pipeline import video

    if _is_there(path, source, since):
        return
    mine = (found.take(found.source == source.name) for found in stream())
    of_frame = _by_frame(found for found in mine if len(found))
    coming = next(of_frame, None)
    if coming is None:
        return
    with (
        workdir.replacing(path) as temporary,
        video.writer(temporary, source.path, tuple(coming[1].size[0])) as append,
    ):
        try:
            for number, pixels in video.frames(source.path):
                if coming is not None and coming[0] == number:
                    pixels = draw(pixels, coming[1], meaning)
                    coming = next(of_frame, None)
                append(pixels)
        except video.Broken:
            pass  # told when it was read; what there is of it is drawn


def _by_frame(parts: Iterable[Instances]):
    """Yields (frame, its instances)."""
    for found in parts:
        for frame in dict.fromkeys(found.frame.tolist()):
            yield frame, found.take(found.frame == frame)


def draw(pixels: np.ndarray, found: Instances, meaning: Meaning) -> np.ndarray:
    """Draws instances on their picture.

    Args:
      pixels: uint8 [H, W, 3].
      found: of this picture.
      meaning: names, skeleton, and the calibration for discs.

    Returns:
      uint8 [H, W, 3].
    """
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    size = max(2.0, min(pixels.shape[:2]) / 150)  # as on the page of heatmap.serve
    radii = _radii(found, meaning)
    for row in range(len(found)):
        points = found.points[row]
        lines: Mapping = {tuple(sorted(pair)): None for pair in meaning.points.skeleton}
        for a, b in lines:
            if np.isfinite(points[[a, b]]).all():
                ends = [tuple(points[a]), tuple(points[b])]
                pen.line(ends, fill=(200, 200, 200), width=max(1, round(size / 2)))
        for k, (x, y) in enumerate(points):
            if not np.isfinite((x, y)).all():
                continue
            ink = COLOURS[k % len(COLOURS)]
            pen.ellipse((x - size, y - size, x + size, y + size), fill=ink)
            r = radii[row, k]
            if np.isfinite(r):
                pen.ellipse((x - r, y - r, x + r, y + r), outline=ink)
    return np.asarray(image)


def _radii(found: Instances, meaning: Meaning) -> np.ndarray:
    """Returns [N, K] px, discs of the highest level that any point has; NaN without a calibration.

    The discs of a picture are all of one level, so that they can be compared.
    """
    if meaning.calibration is None:
        return np.full(found.score.shape, np.nan)
    names = meaning.points.names
    known = ~np.isnan(meaning.calibration.point_factors(names)).all(axis=0)
    level = np.flatnonzero(known)[-1] if known.any() else 0
    return meaning.calibration.radii(found, names)[..., level]

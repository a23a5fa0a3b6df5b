"""What the server says of one photograph: points, lengths and intervals, as JSON can hold them."""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from heatmap.errors import UserError
from heatmap.inference import batches, lengths, predictor, scales, tables, uncertainty
from heatmap.inference.predictor import Predictor
from heatmap.inference.scales import Scales
from heatmap.inference.tables import Meaning

_UNUSED = "This run was not trained on crops by boxes (data.crop): it was shown the whole picture."


@dataclasses.dataclass(frozen=True)
class Question:
    """What a request asks.

    Attributes:
      upload: the bytes of a picture file.
      px_per_cm: its scale as text, as --px_per_cm of heatmap.predict; '' if it is not known.
      box: x0,y0,x1,y1 as text, the edges of the instance in pixels, 0 the left edge of the first;
        '' for the whole picture.
    """

    upload: bytes
    px_per_cm: str = ""
    box: str = ""


class Answerer:
    """A model with what its answers mean."""

    def __init__(
        self, model: Predictor, workdir: pathlib.Path | None = None, measure: Sequence[str] = ()
    ):
        """Reads the calibrations, of whole pictures and of crops by boxes.

        Args:
          model: that answers.
          workdir: that holds them, or None for answers without intervals.
          measure: lengths besides those of the data set, as --measure of heatmap.predict.

        Raises:
          UserError: if a calibration is damaged, or a length makes no sense.
        """
        self._model = model
        self._points = lengths.with_measurements(model.points, measure)
        self._calibrations = {}
        if workdir is not None:
            identity = model.identity()
            self._calibrations = {
                boxed: uncertainty.load_for(workdir, identity, boxed) for boxed in (False, True)
            }

    def warm_up(self) -> None:
        """Compiles before the first request, which else would wait for it."""
        self._predict(np.zeros((*self._model.config.data.image_size, 3), np.uint8), None)

    def __call__(self, question: Question) -> dict[str, Any]:
        """Predicts one picture.

        Returns:
          What JSON can hold: width, height, points and lengths as in the tables of heatmap.predict,
          the skeleton, and notes, sentences about what the answer lacks; what is not known is null.

        Raises:
          UserError: if the bytes are no picture that can be read, or scale or box make no sense.
        """
        scale, points = question.px_per_cm, self._points
        known = Scales(everywhere=scales.parse(scale)) if scale else Scales()
        pixels = self._read(question.upload)
        box = parse_box(question.box, pixels.shape[:2]) if question.box else None
        note = "" if box is not None else predictor.lack_of_boxes(self._model.config)
        if box is not None and self._model.config.data.crop != "box":
            box, note = None, _UNUSED  # as heatmap.predict does with a box that is alone
        found = self._predict(pixels, box)
        calibration = self._calibrations.get(box is not None)
        meaning = Meaning(points, self._model.config, calibration, known)
        return {
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "points": _rows(tables.of_points(found, meaning)),
            "lengths": _rows(tables.of_lengths(found, meaning)) if points.measurements else [],
            "skeleton": [list(pair) for pair in points.skeleton],
            "notes": [note] if note else [],
        }

    def _read(self, upload: bytes) -> np.ndarray:
        from input_pipeline import sources

        with tempfile.NamedTemporaryFile(prefix="upload-") as file:
            file.write(upload)
            file.flush()
            path = pathlib.Path(file.name)
            try:
                return sources.read_picture(path, self._model.config.data.max_megapixels)
            except UserError as error:
                raise UserError(str(error).replace(f"The picture {path}", "The upload")) from error

    def _predict(self, pixels: np.ndarray, box: np.ndarray | None):
        from input_pipeline import sources

        source = sources.Source("upload", pathlib.Path("upload"), is_video=False, stamp="")
        boxes = None if box is None else [box]
        picture = sources.prepared(source, sources.WHOLE, pixels, self._model.config, boxes)
        return batches.at_once(self._model, picture)


def parse_box(text: str, size: tuple[int, int]) -> np.ndarray:
    """Reads x0,y0,x1,y1, counted from the picture's left and upper edge, as COCO does.

    Args:
      text: of a request.
      size: (height, width) of the picture.

    Returns:
      [4] edges in our pixels, whose centres are whole numbers.

    Raises:
      UserError: for another form, or a box without an inside or outside of the picture.
    """
    try:
        box = np.array([float(edge) for edge in text.split(",")])
    except ValueError:
        box = np.empty(0)
    height, width = size
    if box.shape == (4,) and np.isfinite(box).all():
        x0, y0, x1, y1 = box
        if 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height:
            return box - 0.5
    raise UserError(
        f"box={text:.60} must be x0,y0,x1,y1 in pixels inside the picture of {width}x{height}, "
        "such as 10,20,200,180."
    )


def _rows(columns: tables.Columns) -> list[dict[str, Any]]:
    """Turns columns into records, without what only tells pictures apart."""
    kept = {n: v for n, v in columns.items() if n not in ("source", "frame", "instance")}
    lists = {name: np.asarray(values).tolist() for name, values in kept.items()}
    return [
        {name: _known(value) for name, value in zip(lists, row, strict=True)}
        for row in zip(*lists.values(), strict=True)
    ]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""From pixels to centimetres: the scale of each picture, and how uncertain it is.

A scale comes from a scale bar whose ends the model finds as two of its points, from a table with a
row for each picture, or from a number for all. Its uncertainty, σ(s)/s of the length, is the same
for all lengths of a picture, and so is reported apart from theirs.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.inference import place
from heatmap.inference.instances import Instances
from heatmap.inference.uncertainty import Calibration
from heatmap.pairs import distance

POINT_SD = 1.0  # px, of each end of a scale in a table that does not state its own


@dataclasses.dataclass(frozen=True)
class Scale:
    """Pixels to the centimetre.

    Attributes:
      px_per_cm: positive.
      sd: its standard deviation, NaN where it is not known.
    """

    px_per_cm: float
    sd: float = math.nan


@dataclasses.dataclass(frozen=True)
class Bar:
    """Two points of known distance.

    Attributes:
      a: number of the one point.
      b: of the other.
      cm: between them.
    """

    a: int
    b: int
    cm: float


@dataclasses.dataclass(frozen=True)
class Scales:
    """Where scales come from; the first that applies to an instance counts.

    Attributes:
      bar: that the model finds, or None.
      by_name: of single pictures.
      everywhere: of all others, or None.
    """

    bar: Bar | None = None
    by_name: Mapping[str, Scale] = dataclasses.field(default_factory=dict)
    everywhere: Scale | None = None

    @property
    def any(self) -> bool:
        """Whether there is any."""
        return bool(self.bar or self.by_name or self.everywhere)

    def of(
        self, found: Instances, config: Config, calibration: Calibration | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (px per cm [N], its standard deviation [N]), NaN where there is none.

        Args:
          found: N instances.
          config: of the run.
          calibration: of the predictor, or None; with one that knows the ends of the scale bar, the
            deviation is calibrated too, else it is what their maps say of themselves.
        """
        known = [self._named(str(name)) for name in found.source]
        values = [(s.px_per_cm, s.sd) if s else (math.nan, math.nan) for s in known]
        told = np.array(values, np.float64).reshape(len(found), 2)
        if self.bar:
            read = _from_bar(self.bar, found, config, calibration)
            told = np.where(np.isnan(read[:, :1]), told, read)
        return told[:, 0], told[:, 1]

    def unknown(self, names: Iterable[str]) -> list[str]:
        """Lists the pictures of which no scale is known, unless a bar is found in them."""
        return [name for name in names if self._named(name) is None]

    def _named(self, name: str) -> Scale | None:
        parts = name.split("/")
        for start in range(len(parts)):
            if scale := self.by_name.get("/".join(parts[start:])):
                return scale
        return self.everywhere


def _from_bar(
    bar: Bar, found: Instances, config: Config, calibration: Calibration | None
) -> np.ndarray:
    """Returns [N, 2], px per cm and its deviation, NaN where the bar was not found."""
    along = found.points[:, bar.b] - found.points[:, bar.a]
    length = distance(found.points[:, bar.a], found.points[:, bar.b])
    there = np.isfinite(length) & (length > 0)
    if calibration and calibration.visibility:  # a map has a peak also where there is no bar
        seen = calibration.visibility(found.score[:, [bar.a, bar.b]])
        there &= (seen >= 0.5).all(axis=1)
    length = np.where(there, length, np.nan)
    unit = along / length[:, None]
    wide = place.covariances(found, config)
    both = wide[:, bar.a] + wide[:, bar.b]
    sd = np.sqrt(np.einsum("ni,nij,nj->n", unit, both, unit))
    if calibration:
        calibrated = calibration.length_sd(found, ("bar", bar.a, bar.b))
        sd = np.where(np.isnan(calibrated), sd, calibrated)
    return np.stack([length, sd], axis=1) / bar.cm


def parse(text: str) -> Scale:
    """Reads `782.9` or `782.9,1.5`: pixels to the centimetre, and their standard deviation.

    Raises:
      UserError: for anything else.
    """
    try:
        values = [float(part) for part in text.split(",")]
        return _checked(*values)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"px_per_cm={text!r} must be one positive number, or two: 782.9,1.5 with its "
            "standard deviation."
        ) from error


def read(path: pathlib.Path) -> dict[str, Scale]:
    """Reads a table of scales, CSV with a header.

    Columns: `file` (or the end of its path) and `px_per_cm`, with `px_per_cm_sd` if it is known; or
    `file`, `x0`, `y0`, `x1`, `y1` and `cm`, two marks on the picture and what lies between them,
    with `point_sd`, px, of each mark (else 1).

    Raises:
      UserError: naming the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"The table of scales {path} cannot be read ({error}).") from error
    found: dict[str, Scale] = {}
    for number, row in enumerate(rows, start=2):
        try:
            scale = _of_row(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}, line {number}: needs the columns file and px_per_cm, or file, x0, y0, "
                f"x1, y1 and cm, with positive numbers ({error})."
            ) from error
        name = (row.get("file") or "").replace("\\", "/")
        if not name or name in found:
            raise UserError(f"{path}, line {number}: the file {name!r} is missing or named twice.")
        found[name] = scale
    if not found:
        raise UserError(f"{path} lists no scale; give it a header and a row for each picture.")
    return found


def _of_row(row: Mapping[str, str]) -> Scale:
    if row.get("px_per_cm"):
        sd = row.get("px_per_cm_sd")
        return _checked(float(row["px_per_cm"]), float(sd) if sd else math.nan)
    x0, y0, x1, y1, cm = (float(row[name]) for name in ("x0", "y0", "x1", "y1", "cm"))
    mark = float(row.get("point_sd") or POINT_SD)
    if not cm > 0:
        raise ValueError("cm must be positive")
    return _checked(math.hypot(x1 - x0, y1 - y0) / cm, math.sqrt(2) * mark / cm)


def _checked(px_per_cm: float, sd: float = math.nan) -> Scale:
    if not (math.isfinite(px_per_cm) and px_per_cm > 0) or sd < 0 or math.isinf(sd):
        raise ValueError("out of range")
    return Scale(px_per_cm, sd)

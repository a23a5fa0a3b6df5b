"""From pixels to centimetres: the scale of each picture, and how uncertain it is.

A scale comes from a number for all pictures, from a table with a row for each, or from a scale bar
whose ends the model finds as two of its points. Its uncertainty, σ(s)/s of the length, is the same
for all lengths of a picture, and so is reported apart from theirs.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from heatmap.errors import UserError
from heatmap.inference.instances import Instances
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
    """Where scales come from; the first that applies to a picture counts.

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

    def of(self, found: Instances, place_covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (px per cm [N], its standard deviation [N]), NaN where there is none.

        Args:
          found: N instances.
          place_covariance: [N, K, 2, 2] px², of where points are; NaN where not known.
        """
        if self.bar:
            return self._from_bar(self.bar, found, place_covariance)
        known = [self._named(str(name)) for name in found.source]
        values = [(s.px_per_cm, s.sd) if s else (math.nan, math.nan) for s in known]
        table = np.array(values, np.float64).reshape(len(found), 2)
        return table[:, 0], table[:, 1]

    def _named(self, name: str) -> Scale | None:
        parts = name.split("/")
        for start in range(len(parts)):
            if scale := self.by_name.get("/".join(parts[start:])):
                return scale
        return self.everywhere

    def _from_bar(
        self, bar: Bar, found: Instances, covariance: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        along = found.points[:, bar.b] - found.points[:, bar.a]
        length = distance(found.points[:, bar.a], found.points[:, bar.b])
        length = np.where(np.isfinite(length) & (length > 0), length, np.nan)
        unit = along / length[:, None]
        both = covariance[:, bar.a] + covariance[:, bar.b]
        sd = np.sqrt(np.maximum(np.einsum("ni,nij,nj->n", unit, both, unit), 0))
        return length / bar.cm, sd / bar.cm


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

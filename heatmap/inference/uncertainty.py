"""How far off a predicted point or length may be: scales from the maps, factors from calibration.

A map says how wide its peak is. That alone is no honest interval, but a good yardstick: errors are
divided by it, and the quantile of these ratios on groups that nothing else has touched is the
factor by which it has to be multiplied (split conformal prediction with a normalised score; Lei et
al., JASA 2018). A network without maps has one yardstick for all: a pixel of its input.
"""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from heatmap import workdir
from heatmap.errors import UserError
from heatmap.inference.instances import Instances
from heatmap.keypoints import Measurement

LEVELS = (0.8, 0.9, 0.95)
_FORMAT = 2
_FLOOR = 1e-6  # of a variance, in pixels of the input squared


def covariances(found: Instances) -> np.ndarray:
    """Returns [N, K, 2, 2] px², of the maps or, where there are none, of a pixel of the input."""
    pixel = np.einsum("nd,de->nde", found.unit**2, np.eye(2))[:, None]
    return np.where(np.isnan(found.covariance), pixel, found.covariance)


def spread(found: Instances) -> np.ndarray:
    """Returns [N, K] px, the yardstick of each point."""
    return point_scale(covariances(found), found.unit[:, None], np)


def length_spread(found: Instances, line: Measurement) -> np.ndarray:
    """Returns [N] px, the yardstick of a measured length."""
    _, a, b = line
    wide = covariances(found)
    # NaN, not infinity: a lost point has no direction, and its length no yardstick but its own.
    along = found.points[:, b] - found.points[:, a]
    along = np.where(np.isfinite(along).all(axis=1, keepdims=True), along, 0.0)
    return length_scale(along, wide[:, a] + wide[:, b], found.unit, np)


def point_scale(covariance, unit, xp):
    """Returns [...] px: the root of half the trace of a point's covariance.

    Args:
      covariance: [..., 2, 2] px².
      unit: [..., 2] pixels of the picture to one of the input. A thousandth of that is the least,
        where a map is one single cell.
      xp: numpy or jax.numpy, which an exported model computes with.
    """
    half = (covariance[..., 0, 0] + covariance[..., 1, 1]) / 2
    return xp.sqrt(xp.maximum(half, _FLOOR * unit[..., 0] * unit[..., 1]))


def length_scale(along, covariance, unit, xp):
    """Returns [...] px: the standard deviation of a length whose ends have these covariances.

    To first order that is √(uᵀ(A + B)u) with the direction u of the line; across, for no length.

    Args:
      along: [..., 2] px, from one end to the other.
      covariance: [..., 2, 2] px², A + B.
      unit: [..., 2], as in `point_scale`.
      xp: likewise.
    """
    x, y = along[..., 0], along[..., 1]
    squared = x * x + y * y
    is_line = squared > 0
    squared, x = xp.where(is_line, squared, 1.0), xp.where(is_line, x, 1.0)
    variance = x * x * covariance[..., 0, 0] + y * y * covariance[..., 1, 1]
    variance = (variance + 2 * x * y * covariance[..., 0, 1]) / squared
    return xp.sqrt(xp.maximum(variance, _FLOOR * unit[..., 0] * unit[..., 1]))


@dataclasses.dataclass(frozen=True)
class Steps:
    """A calibrated probability as a function of a score: it rises in steps.

    Attributes:
      scores: where each step begins, ascending.
      values: in [0, 1], ascending.
    """

    scores: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, score: np.ndarray) -> np.ndarray:
        """Looks scores up; below the first step its value holds."""
        place = np.searchsorted(self.scores, np.nan_to_num(score), side="right") - 1
        return np.asarray(self.values)[np.clip(place, 0, None)]


@dataclasses.dataclass(frozen=True)
class Line:
    """What a calibration knows of the length between two points.

    Attributes:
      a: number of the one point.
      b: of the other.
      factors: for each level, NaN where too few groups show both.
    """

    a: int
    b: int
    factors: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a cal split has taught about the errors of a predictor.

    Attributes:
      identity: of the predictor, `Predictor.identity`.
      levels: of coverage, ascending.
      groups: how many there were.
      examples: how many.
      points: for each point a factor for each level, NaN where too few groups show it.
      lines: by the name of the measurement.
      within: what counts as right for the confidence, as a share of the reference length.
      confidence: P(error < within · reference), from the decoder's score; the reference is the
        diagonal of the extent of the labelled points. None where no instance has two of them.
      visibility: P(the point is in the picture), from the score, or None where the labels do not
        tell absent points.
      cropped: whether it is of crops by the boxes of instances, not of whole pictures.
    """

    identity: str
    levels: tuple[float, ...]
    groups: int
    examples: int
    points: dict[str, tuple[float, ...]]
    lines: dict[str, Line]
    within: float
    confidence: Steps | None
    visibility: Steps | None = None
    cropped: bool = False

    def radii(self, found: Instances, names: Sequence[str]) -> np.ndarray:
        """Returns [N, K, L] px: a disc round each point that holds the true one, by level."""
        return spread(found)[..., None] * self.point_factors(names)

    def half_widths(self, found: Instances, lines: Sequence[Measurement]) -> np.ndarray:
        """Returns [N, M, L] px: how far the true length may be from the measured one, by level."""
        wide = [length_spread(found, line) for line in lines]
        if not wide:
            return np.zeros((len(found), 0, len(self.levels)))
        return np.stack(wide, axis=1)[..., None] * self.line_factors(lines)

    def length_sd(self, found: Instances, line: Measurement) -> np.ndarray:
        """Returns [N] px: the standard deviation of a length that has normal errors.

        It is taken from the interval of that length or, where it was not calibrated, from the discs
        round its ends, as if these erred independently, at the lowest level that is known. NaN
        without.
        """
        _, a, b = line
        known = np.isfinite(self.line_factors([line])[0])
        if known.any():
            level = known.argmax()
            tails = statistics.NormalDist().inv_cdf((1 + self.levels[level]) / 2)
            return self.half_widths(found, [line])[:, 0, level] / tails
        names = list(self.points)
        factors = self.point_factors([names[a], names[b]])
        known = np.isfinite(factors).all(axis=0)
        if not known.any():
            return np.full(len(found), np.nan)
        level = known.argmax()
        # A disc holds a round normal error with the probability 1 - exp(-r²/2 sd²).
        rayleigh = math.sqrt(-2 * math.log(1 - self.levels[level]))
        return np.hypot(*(spread(found)[:, [a, b]] * factors[:, level] / rayleigh).T)

    def point_factors(self, names: Sequence[str]) -> np.ndarray:
        """Returns [K, L], NaN where nothing is known."""
        unknown = (math.nan,) * len(self.levels)
        rows = [self.points.get(name, unknown) for name in names]
        return np.array(rows, np.float64).reshape(len(names), len(self.levels))

    def line_factors(self, lines: Sequence[Measurement]) -> np.ndarray:
        """Returns [M, L], NaN where nothing is known; lengths are known by their ends."""
        known = {frozenset((line.a, line.b)): line.factors for line in self.lines.values()}
        unknown = (math.nan,) * len(self.levels)
        rows = [known.get(frozenset((a, b)), unknown) for _, a, b in lines]
        return np.array(rows, np.float64).reshape(len(lines), len(self.levels))


def path_of(folder: pathlib.Path, identity: str) -> pathlib.Path:
    """Names the file of a predictor's calibration in the workdir of its first model."""
    return folder / "calibration" / f"{identity[:16]}.json"


def save(folder: pathlib.Path, calibration: Calibration) -> pathlib.Path:
    """Writes a calibration beside the model that it is of."""
    path = path_of(folder, calibration.identity)
    workdir.write_json(path, {"format": _FORMAT, **dataclasses.asdict(calibration)})
    return path


def load(folder: pathlib.Path, identity: str) -> Calibration | None:
    """Reads the calibration of a predictor, or None if there is none.

    Raises:
      UserError: naming the file, if it is damaged.
    """
    path, remedy = path_of(folder, identity), "make it anew with python -m heatmap.calibration"
    if not path.is_file():
        return None
    told = workdir.read_json(path, remedy)
    try:
        return _from_json(told, identity)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is no calibration ({error}); {remedy}.") from error


def load_for(folder: pathlib.Path, identity: str, boxed: bool) -> Calibration | None:
    """Reads a calibration, as `load`, if it is of such inputs: crops by boxes or whole pictures."""
    found = load(folder, identity)
    return found if found is None or found.cropped == boxed else None


def time_of(folder: pathlib.Path, identity: str) -> float:
    """Returns when a calibration was written, seconds of the epoch; 0 if there is none."""
    path = path_of(folder, identity)
    return path.stat().st_mtime if path.is_file() else 0.0


def _from_json(told: dict[str, Any], identity: str) -> Calibration:
    if told.pop("format") != _FORMAT:
        raise ValueError("it was written by another version of this program")
    if told["identity"] != identity:
        raise ValueError("it is of another model")
    told["levels"] = tuple(map(float, told["levels"]))
    if not told["levels"] or not all(0 < level < 1 for level in told["levels"]):
        raise ValueError("levels do not lie between 0 and 1")

    def row(values: Sequence[Any]) -> tuple[float, ...]:
        if len(values) != len(told["levels"]):
            raise ValueError("factors do not fit the levels")
        return tuple(map(float, values))

    told["points"] = {str(name): row(values) for name, values in told["points"].items()}
    told["lines"] = {
        str(name): Line(int(line["a"]), int(line["b"]), row(line["factors"]))
        for name, line in told["lines"].items()
    }
    for name in ("confidence", "visibility"):
        steps = told[name]
        if steps is not None:
            scores, values = (tuple(map(float, steps[part])) for part in ("scores", "values"))
            if not scores or len(scores) != len(values):
                raise ValueError(f"{name} has no steps")
            told[name] = Steps(scores, values)
    return Calibration(**told)

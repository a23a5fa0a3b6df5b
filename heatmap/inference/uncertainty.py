"""How far off a predicted point or length may be: scales from the maps, factors from calibration.

A map says how wide its peak is. That alone is no honest interval, but a good yardstick: errors are
divided by it, and the quantile of these ratios on groups that nothing else has touched is the
factor by which it has to be multiplied (split conformal prediction with a normalised score; Lei et
al., JASA 2018). A network without maps has one yardstick for all: a pixel of its input.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from heatmap import conformal, workdir
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.inference.instances import Instances
from heatmap.keypoints import Measurement

LEVELS = (0.8, 0.9, 0.95)
_FORMAT = 1
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


def place_covariances(found: Instances, config: Config) -> np.ndarray:
    """Returns [N, K, 2, 2] px²: what is left of the maps' covariance without the targets' own.

    At the optimum of the loss this is the covariance of where the point is, as far as the network
    knows. It is not calibrated. NaN where there are no maps.
    """
    size, maps = config.data.image_size, config.targets.heatmap_size
    strides = np.array([size[1] / maps[1], size[0] / maps[0]])
    blur = (config.targets.sigma * strides * found.unit) ** 2  # [N, 2]
    left = found.covariance - np.einsum("nd,de->nde", blur, np.eye(2))[:, None]
    values, vectors = np.linalg.eigh(np.nan_to_num(left))
    known = np.einsum("...ij,...j,...kj->...ik", vectors, np.maximum(values, 0), vectors)
    return np.where(np.isnan(found.covariance), np.nan, known)


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
class Calibration:
    """What a cal split has taught about the errors of a predictor.

    Attributes:
      identity: of the predictor, `Predictor.identity`.
      levels: of coverage, ascending; those that there were groups enough for.
      groups: how many there were.
      examples: how many.
      points: for each point a factor for each level, or () where too few groups show it.
      lines: for each measurement likewise.
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
    lines: dict[str, tuple[float, ...]]
    within: float
    confidence: Steps | None
    visibility: Steps | None = None
    cropped: bool = False

    def radii(self, found: Instances, names: Sequence[str]) -> np.ndarray:
        """Returns [N, K, L] px: a disc round each point that holds the true one, by level."""
        return spread(found)[..., None] * factors_of(self.points, names, len(self.levels))

    def half_widths(self, found: Instances, lines: Sequence[Measurement]) -> np.ndarray:
        """Returns [N, M, L] px: how far the true length may be from the measured one, by level."""
        wide = [length_spread(found, line) for line in lines]
        factors = factors_of(self.lines, [name for name, *_ in lines], len(self.levels))
        return np.stack(wide, axis=1)[..., None] * factors if wide else np.zeros((len(found), 0, 0))


def factors_of(table: dict[str, tuple[float, ...]], names: Sequence[str], count: int) -> np.ndarray:
    """Returns a table's rows as [names, levels], NaN where nothing is known."""
    rows = [table.get(name) or (np.nan,) * count for name in names]
    return np.array(rows, np.float64).reshape(len(names), count)


def factors(
    errors: np.ndarray, scale: np.ndarray, groups: np.ndarray, levels: Sequence[float]
) -> tuple[float, ...]:
    """Calibrates one point or line.

    Args:
      errors: [N] px, infinite where lost, NaN where not labelled.
      scale: [N] px, the yardstick.
      groups: [N].
      levels: of coverage.

    Returns:
      A factor for each level, or () if too few groups show it for one of them.
    """
    known = ~np.isnan(errors)
    if len(np.unique(groups[known])) < conformal.groups_needed(max(levels)):
        return ()
    ratios = errors[known] / scale[known]
    return tuple(conformal.bound(ratios, groups[known], level) for level in levels)


def monotone(score: np.ndarray, right: np.ndarray, groups: np.ndarray) -> Steps:
    """Fits P(right) as a function of a score by isotonic regression, each group weighing the same.

    (Zadrozny and Elkan, KDD 2002.) Nothing is certain after n groups: values keep 1/(n + 2) away
    from 0 and 1, as by Laplace's rule of succession.

    Args:
      score: [N]; NaN counts as 0.
      right: [N] bool.
      groups: [N].
    """
    from scipy import optimize

    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    # Equal scores must have equal values: they are one place with their mean.
    places, where = np.unique(np.nan_to_num(score), return_inverse=True)
    weight = 1 / sizes[index]
    total = np.bincount(where, weight)
    share = np.bincount(where, weight * right) / total
    fitted = optimize.isotonic_regression(share, weights=total).x
    least = 1 / (len(sizes) + 2)
    fitted = np.clip(fitted, least, 1 - least)
    starts = np.flatnonzero(np.diff(fitted, prepend=-1.0) > 0)
    return Steps(tuple(places[starts].tolist()), tuple(fitted[starts].tolist()))


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
    if told.pop("format") != _FORMAT or told["identity"] != identity:
        raise ValueError("of another version or model")
    for name in ("points", "lines"):
        told[name] = {str(key): tuple(map(float, row)) for key, row in told[name].items()}
        if any(len(row) not in (0, len(told["levels"])) for row in told[name].values()):
            raise ValueError(f"{name} do not fit the levels")
    for name in ("confidence", "visibility"):
        steps = told[name]
        if steps is not None:
            scores, values = (tuple(map(float, steps[part])) for part in ("scores", "values"))
            if not scores or len(scores) != len(values):
                raise ValueError(f"{name} has no steps")
            told[name] = Steps(scores, values)
    told["levels"] = tuple(map(float, told["levels"]))
    return Calibration(**told)

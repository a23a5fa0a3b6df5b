"""Which labels a model doubts: how improbable each is, given what the model says of its picture.

The error of a point is divided by the one that the model has reason to expect there
(`ranking.expected_errors`), and the logarithm of that set against those of the other labels: the
median of its point, and the spread of all (1.4826 times the median of absolute differences). So a
doubt counts standard deviations from what is usual, and is not moved by what is not.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from heatmap.keypoints import KeypointSet, Pair
from heatmap.pairs import distance

_NORMAL = 1.4826  # a standard deviation over the median absolute deviation
_LEAST_RATIO = 1e-3
_LEAST_SPREAD = 0.1  # of logarithms: where nearly all errors are equal
# Exchanged, a pair must be usual, and so much more so than it was.
_USUAL, _LESS = 2.5, 2.0


@dataclasses.dataclass(frozen=True)
class Usual:
    """How far labels usually lie from where a model sees their points.

    Attributes:
      centre: [K], the median logarithm of the error over the expected one; NaN for a point that
        is not labelled.
      spread: the standard deviation round it.
    """

    centre: np.ndarray
    spread: float

    def doubt(self, errors: np.ndarray, expected: np.ndarray, point: np.ndarray) -> np.ndarray:
        """Returns [...] standard deviations from what is usual; NaN where there is no error.

        Args:
          errors: [...] px.
          expected: [...] px.
          point: [...], the index of the point that was predicted.
        """
        return (_logarithms(errors, expected) - self.centre[point]) / self.spread


def _logarithms(errors: np.ndarray, expected: np.ndarray) -> np.ndarray:
    known = np.isfinite(errors) & np.isfinite(expected)
    ratio = np.where(known, errors, 1.0) / np.where(known, expected, 1.0)
    return np.where(known, np.log(np.maximum(ratio, _LEAST_RATIO)), np.nan)


def usual(errors: np.ndarray, expected: np.ndarray) -> Usual:
    """Learns what is usual of N instances that a model knows equally well, such as a split.

    Args:
      errors: [N, K] px, NaN where not labelled, infinite where not predicted.
      expected: [N, K] px.
    """
    logarithms = _logarithms(errors, expected)
    centre = np.array([_median(column) for column in logarithms.T])
    spread = _NORMAL * _median(np.abs(logarithms - centre).ravel())
    return Usual(centre, max(np.nan_to_num(spread), _LEAST_SPREAD))


def _median(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(np.median(values)) if values.size else np.nan


class Doubt(NamedTuple):
    """A label that looks wrong.

    Attributes:
      row: of the instance.
      point: index of the point that is doubted most.
      error: px from where the model sees it.
      doubt: in standard deviations from what is usual.
      swapped: pairs whose exchange would make their labels usual ones.
    """

    row: int
    point: int
    error: float
    doubt: float
    swapped: tuple[Pair, ...]


def rank(predicted: np.ndarray, truth: np.ndarray, expected: np.ndarray, count: int) -> list[Doubt]:
    """Orders instances by the label in them that is doubted most.

    Args:
      predicted: [N, K, 2] px.
      truth: [N, K, 2] px, NaN where not labelled; pairs without an order in that which suits the
        prediction.
      expected: [N, K] px, the errors that the model has reason to expect.
      count: how many are wanted.

    Returns:
      The doubts of instances that have a label and a prediction of it, the largest first; equal
      ones in the order in which they are given.
    """
    labelled = np.isfinite(truth).all(axis=-1)
    errors = np.where(labelled, distance(predicted, truth), np.nan)
    norm = usual(errors, expected)
    each = norm.doubt(errors, expected, np.arange(errors.shape[1]))
    most = np.where(np.isnan(each), -np.inf, each)
    order = np.argsort(-most.max(axis=1), kind="stable")
    found = []
    for row in order[most.max(axis=1)[order] > -np.inf][:count].tolist():
        point = int(most[row].argmax())
        pairs = _swapped(norm, predicted[row], truth[row], expected[row])
        found.append(Doubt(row, point, float(errors[row, point]), float(each[row, point]), pairs))
    return found


def _swapped(norm: Usual, predicted, truth, expected) -> tuple[Pair, ...]:
    """Finds the pairs of one instance that look exchanged, whatever they are called.

    Args:
      norm: of the split.
      predicted: [K, 2].
      truth: [K, 2], NaN where not labelled.
      expected: [K].
    """
    points = np.flatnonzero(np.isfinite(truth).all(axis=-1))
    apart = distance(predicted[points, None], truth[None, points])  # of point i and label j
    doubts = norm.doubt(apart, expected[points, None], points[:, None])
    own = np.diagonal(doubts)
    before = np.maximum(own[:, None], own[None, :])
    after = np.maximum(doubts, doubts.T)
    better = np.where((after < _USUAL) & (before - after > _LESS), before - after, 0.0)
    pairs = []
    while better.size and better.max() > 0:
        a, b = sorted(np.unravel_index(better.argmax(), better.shape))
        pairs.append((int(points[a]), int(points[b])))
        better[[a, b]], better[:, [a, b]] = 0.0, 0.0
    return tuple(pairs)


def phrase(doubt: Doubt, points: KeypointSet) -> str:
    """Says in a few words what looks wrong."""
    text = f"{points.names[doubt.point]} is {doubt.error:.3g} px from where it is seen"
    return "; ".join([text, *swaps(doubt.swapped, points)])


def swaps(pairs: Sequence[Pair], points: KeypointSet) -> list[str]:
    """Says which pairs look swapped."""
    return [f"{points.names[a]}/{points.names[b]} look swapped" for a, b in pairs]

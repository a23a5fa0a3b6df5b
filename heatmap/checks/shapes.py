"""Shapes: what is left of labelled points once place, size and turn are taken away.

A point (x, y) is the complex number x + iy here, so that a similarity without reflection is
z → a·z + b with a = size · e^(i·turn). Everything is robust: means are medians, and spreads median
absolute deviations, so that a minority of wrong labels does not decide what is normal.
"""

from collections.abc import Sequence

import numpy as np

from heatmap.keypoints import Pair
from heatmap.pairs import cheaper_order

GAUSSIAN = 1.4826  # standard deviations of a Gaussian in a median absolute deviation
RAYLEIGH = 1.1774  # of each coordinate, in the median length of a Gaussian error in the plane
_ROUNDS = 10
_CANDIDATES = 16
_TINY = 1e-12


def complex_of(points: np.ndarray) -> np.ndarray:
    """Turns points [..., 2] into complex numbers [...]."""
    return points[..., 0] + 1j * points[..., 1]


def fit(z: np.ndarray, known: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits a·z + b to a reference, instance by instance, by least squares.

    Args:
      z: [N, K] complex.
      known: [N, K] bool.
      reference: [K] complex, NaN where it is not known.

    Returns:
      a and b, [N] complex; NaN where fewer than two points are known or they coincide.
    """
    counted = known & np.isfinite(reference)
    count = np.maximum(counted.sum(axis=1), 1)
    centre = _total(z, counted) / count
    target = _total(np.broadcast_to(reference, z.shape), counted) / count
    moved = np.where(counted, z - centre[:, None], 0)
    wanted = np.where(counted, reference - target[:, None], 0)
    spread = np.sum(np.abs(moved) ** 2, axis=1)
    usable = (counted.sum(axis=1) >= 2) & (spread > _TINY)
    a = np.sum(moved.conj() * wanted, axis=1) / np.where(usable, spread, 1)
    a = np.where(usable & (np.abs(a) > _TINY), a, np.nan)
    return a, target - a * centre


def _total(z: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return np.sum(np.where(counted, z, 0), axis=1)


def size(z: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the root mean square distance [N] of known points from their mean, NaN if zero."""
    count = np.maximum(known.sum(axis=1), 1)
    centre = _total(z, known) / count
    square = np.sum(np.where(known, np.abs(z - centre[:, None]) ** 2, 0), axis=1) / count
    return np.where(square > _TINY, np.sqrt(square), np.nan)


def mean_shape(
    z: np.ndarray, known: np.ndarray, pairs: Sequence[Pair] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the shape that most instances have: Procrustes analysis with medians for means.

    Every instance is moved, turned and scaled to fit the mean, which then becomes the median of
    them, ten times over (Gower, Psychometrika 1975), beginning with the most typical instance.

    Args:
      z: [N, K] complex.
      known: [N, K] bool.
      pairs: whose order is arbitrary; each instance takes the one that fits the mean better.

    Returns:
      The mean [K] complex, centred, of size one, NaN where nothing is known; and z and known with
      the order of pairs that was taken.
    """
    mean = _most_typical(z, known)
    for _ in range(_ROUNDS):
        a, b = fit(z, known, mean)
        if pairs:
            z, known = _ordered(z, known, mean, a, b, pairs)
            a, b = fit(z, known, mean)
        moved = a[:, None] * z + b[:, None]
        mean = _standard(median(moved, known & np.isfinite(moved)))
    return mean, z, known


def _most_typical(z: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Picks, of some instances with most points, the one that fits the others best."""
    count = known.sum(axis=1)
    fullest = np.flatnonzero(count == count.max())
    places = np.linspace(0, len(fullest) - 1, min(_CANDIDATES, len(fullest))).round().astype(int)
    candidates = [_standard(np.where(known[row], z[row], np.nan)) for row in fullest[places]]

    def typical_error(mean: np.ndarray) -> float:
        a, b = fit(z, known, mean)
        error = np.abs(a[:, None] * z + b[:, None] - mean)
        error = error[known & np.isfinite(error)]
        return float(np.median(error)) if error.size else np.inf

    return min(candidates, key=typical_error)


def _standard(mean: np.ndarray) -> np.ndarray:
    """Centres a shape [K] and gives it the size one."""
    there = np.isfinite(mean)[None]
    centre = _total(mean[None], there) / max(1, there.sum())
    return (mean - centre) / np.nan_to_num(size(mean[None], there), nan=1.0)


def _ordered(z, known, mean, a, b, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    moved = np.where(known, a[:, None] * z + b[:, None], 0)
    truth, weight = cheaper_order(_points(mean), _points(moved), known.astype(float), pairs)
    back = (complex_of(truth) - b[:, None]) / a[:, None]
    fitted = np.isfinite(a)[:, None]
    return np.where(fitted, back, z), np.where(fitted, weight > 0, known)


def _points(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], axis=-1)


def median(z: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Returns the median [K] of complex numbers [N, K], part by part; NaN where none counts."""
    columns = [column[there] for column, there in zip(z.T, counted.T, strict=True)]
    return np.array(
        [
            np.median(c.real) + 1j * np.median(c.imag) if c.size else complex(np.nan, np.nan)
            for c in columns
        ]
    )


def spread(values: np.ndarray) -> float:
    """Returns a standard deviation that a minority of outliers does not move."""
    return float(GAUSSIAN * np.median(np.abs(values - np.median(values))))

"""Points that lie far from where the other points of their instance put them."""

from typing import NamedTuple

import numpy as np

from heatmap.checks import shapes
from heatmap.checks.finding import OK, WARN, Finding, named

NAME = "outliers"
_LEAST = 10  # instances, to say what is usual
_FAR = 8.0  # standard deviations from what is usual, at least
_TAIL = 2.0  # quartile distances above the upper quartile, of the logarithm: 8 for a Gaussian
_SMALLEST = 0.02  # of the instance's size: a nearer point is no mistake to look for
_SHOWN = 5


class Errors(NamedTuple):
    """How far points are from where they are expected; NaN where that is not known.

    Attributes:
      pixels: [N, K].
      relative: [N, K], in sizes of the instance, divided by how little is known there.
    """

    pixels: np.ndarray
    relative: np.ndarray


def in_body(z: np.ndarray, known: np.ndarray, mean: np.ndarray) -> Errors:
    """Measures how far each point lies from where the others put it: its leave-one-out error.

    The mean shape is fitted to the other points of the instance alone; the error of the point is
    then divided by how much such a fit is to be trusted there (the leverage of a regression): a
    point far beyond two others that lie close together is hardly known from them.

    Args:
      z: [N, K] complex.
      known: [N, K] bool.
      mean: [K] complex, of size one.
    """
    pixels, relative = np.full(z.shape, np.nan), np.full(z.shape, np.nan)
    for k in range(z.shape[1]):
        others = known & (np.arange(z.shape[1]) != k) & np.isfinite(mean)
        a, b = shapes.fit(z, others, mean)
        rows = np.flatnonzero(known[:, k] & np.isfinite(a))
        error = a[rows] * z[rows, k] + b[rows] - mean[k]
        trusted = error / np.sqrt(_leverage(others[rows], mean, k))
        pixels[rows, k] = np.abs(error / a[rows])
        usual = shapes.median(trusted[:, None], np.ones((len(rows), 1), bool))
        relative[rows, k] = np.abs(trusted - usual)
    return Errors(pixels, relative)


def in_picture(z: np.ndarray, known: np.ndarray, sizes: np.ndarray) -> Errors:
    """Measures how far each point lies from where it is in most pictures.

    Args:
      z: [N, K] complex.
      known: [N, K] bool.
      sizes: [N, 2] (height, width) of the pictures.
    """
    height, width = sizes[:, :1], sizes[:, 1:]
    place = shapes.median((z.real + 0.5) / width + 1j * (z.imag + 0.5) / height, known)
    usual = (place.real * width - 0.5) + 1j * (place.imag * height - 0.5)
    pixels = np.where(known, np.abs(z - usual), np.nan)
    return Errors(pixels, pixels / shapes.size(z, known)[:, None])


def _leverage(others: np.ndarray, mean: np.ndarray, k: int) -> np.ndarray:
    """Returns [N] 1 + 1/n + d²/S: how uncertain a fit to the other points is at point k."""
    reference = np.where(others, np.nan_to_num(mean), 0)
    count = np.maximum(others.sum(axis=1), 1)
    centre = reference.sum(axis=1) / count
    square = np.sum(np.where(others, np.abs(reference - centre[:, None]) ** 2, 0), axis=1)
    return 1 + 1 / count + np.abs(mean[k] - centre) ** 2 / np.maximum(square, 1e-12)


def _excess(relative: np.ndarray) -> np.ndarray:
    """Says [n] how many times further than the furthest usual error each of them is.

    Usual is what a Gaussian as wide as most errors reaches, or as the errors' own tail does where
    that is heavier: limbs are where a body does not put them.
    """
    there = np.isfinite(relative)
    if there.sum() < _LEAST:
        return np.zeros(relative.shape)
    low, middle, high = np.quantile(np.maximum(relative[there], 1e-9), [0.25, 0.5, 0.75])
    furthest = max(_FAR * middle / shapes.RAYLEIGH, high * (high / low) ** _TAIL, _SMALLEST)
    return np.where(there, relative, 0.0) / furthest


def check(records) -> Finding:
    """Looks for points that lie neither where their body nor where their picture puts them.

    Each point is judged by the one that puts it more exactly: the other points of its instance, or,
    of things that a camera always sees in the same place, the picture.

    Args:
      records: `input_pipeline.Records`, those that train and are scored, without those known to be
        wrong.
    """
    points = records.points
    z, known = shapes.complex_of(records.keypoints), records.labelled
    if points.count < 3 or np.sum(known.sum(axis=1) >= 3) < _LEAST:
        message = f"a shape needs three points and {_LEAST} instances: not looked for"
        return Finding(OK, NAME, message)
    mean, z, known = shapes.mean_shape(z, known, points.interchangeable_pairs)
    body, picture = in_body(z, known, mean), in_picture(z, known, records.sizes)
    steadier = _median(picture.pixels) < _median(body.pixels)  # [K]
    pixels, relative = (np.where(steadier, p, b) for p, b in zip(picture, body, strict=True))
    excess = np.stack([_excess(column) for column in relative.T], axis=1)
    worst = excess.argmax(axis=1)
    most = excess[np.arange(len(z)), worst]
    order = np.argsort(-most, kind="stable")
    listed = [
        {
            "record": named(records, [row])[0],
            "point": points.names[worst[row]],
            "error_px": round(float(pixels[row, worst[row]]), 1),
            "times_the_furthest_usual": round(float(most[row]), 2),
        }
        for row in order[most[order] > 1]
    ]
    typical = float(np.nanmedian(pixels))
    data = {"median_error_px": typical, "outliers": listed}
    usual = f"from where the other points put it (usual: {typical:.3g} px)"
    if not listed:
        return Finding(OK, NAME, f"no label lies unusually far {usual}", data=data)
    rows = tuple(
        f"{o['record']}: {o['point']} is {o['error_px']:g} px off" for o in listed[:_SHOWN]
    )
    message = f"{len(listed)} of {len(records)} instances have a label far {usual}: look at"
    return Finding(WARN, NAME, message, rows, data)


def _median(values: np.ndarray) -> np.ndarray:
    """Returns the median [K] of what is known of [N, K], infinite where nothing is."""
    return np.array(
        [np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else np.inf for c in values.T]
    )

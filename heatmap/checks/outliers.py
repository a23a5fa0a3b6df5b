"""Points that lie far from where the other points of their instance put them."""

import numpy as np

from heatmap.checks import shapes
from heatmap.checks.finding import OK, WARN, Finding, named

NAME = "outliers"
_LEAST = 10  # instances, to say what is usual
_FAR = 8.0  # standard deviations from what is usual
_SMALLEST = 0.02  # of the instance's size: a nearer point is no mistake to look for
_SHOWN = 5


def errors(z: np.ndarray, known: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measures how far each point lies from where the others put it: its leave-one-out error.

    The mean shape is fitted to the other points of the instance alone; the error of the point is
    then divided by how much such a fit is to be trusted there (the leverage of a regression): a
    point far beyond two others that lie close together is hardly known from them.

    Args:
      z: [N, K] complex.
      known: [N, K] bool.
      mean: [K] complex, of size one.

    Returns:
      The errors [N, K] in pixels, and in standard deviations of the errors of that point; NaN
      where the point, or two others, are not known.
    """
    pixels, deviations = np.full(z.shape, np.nan), np.full(z.shape, np.nan)
    for k in range(z.shape[1]):
        others = known & (np.arange(z.shape[1]) != k) & np.isfinite(mean)
        a, b = shapes.fit(z, others, mean)
        counted = known[:, k] & np.isfinite(a)
        if counted.sum() < _LEAST:
            continue
        error = a * z[:, k] + b - mean[k]
        trusted = error / np.sqrt(_leverage(others, mean, k))
        trusted = np.where(counted, trusted - shapes.median(trusted[:, None], counted[:, None]), 0)
        length = np.abs(trusted)
        scatter = max(np.median(length[counted]) / shapes.RAYLEIGH, _SMALLEST / _FAR)
        pixels[:, k] = np.where(counted, np.abs(error / a), np.nan)
        deviations[:, k] = np.where(counted, length / scatter, np.nan)
    return pixels, deviations


def _leverage(others: np.ndarray, mean: np.ndarray, k: int) -> np.ndarray:
    """Returns [N] 1 + 1/n + d²/S: how uncertain a fit to the other points is at point k."""
    reference = np.where(others, np.nan_to_num(mean), 0)
    count = np.maximum(others.sum(axis=1), 1)
    centre = reference.sum(axis=1) / count
    square = np.sum(np.where(others, np.abs(reference - centre[:, None]) ** 2, 0), axis=1)
    return 1 + 1 / count + np.abs(mean[k] - centre) ** 2 / np.maximum(square, 1e-12)


def check(records) -> Finding:
    """Looks for points that do not fit the shape of their instance.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
    """
    points = records.points
    if points.count < 3 or len(records) < _LEAST:
        message = f"a shape needs three points and {_LEAST} instances: not looked for"
        return Finding(OK, NAME, message)
    z, known = shapes.complex_of(records.keypoints), records.labelled
    mean, z, known = shapes.mean_shape(z, known, points.interchangeable_pairs)
    pixels, deviations = errors(z, known, mean)
    worst = np.nan_to_num(deviations, nan=-1.0).argmax(axis=1)
    rows = np.arange(len(records))
    far = np.nan_to_num(deviations[rows, worst], nan=-1.0)
    order = np.argsort(-far)
    order = order[far[order] > _FAR]
    typical = float(np.nanmedian(pixels)) if np.isfinite(pixels).any() else None
    listed = [
        {
            "record": named(records, [row])[0],
            "point": points.names[worst[row]],
            "error_px": round(float(pixels[row, worst[row]]), 1),
            "deviations": round(float(far[row]), 1),
        }
        for row in order
    ]
    data = {"median_error_px": typical, "outliers": listed}
    if typical is None:
        return Finding(OK, NAME, "no instance has three labelled points: not looked for", data=data)
    usual = f"where the other points put it (usual: {typical:.3g} px)"
    if not listed:
        message = f"no label lies further than {_FAR:g} standard deviations from {usual}"
        return Finding(OK, NAME, message, data=data)
    rows_shown = tuple(
        f"{o['record']}: {o['point']} is {o['error_px']:g} px off, {o['deviations']:g} deviations"
        for o in listed[:_SHOWN]
    )
    message = f"{len(listed)} of {len(records)} instances have a label far from {usual}: look at"
    return Finding(WARN, NAME, message, rows_shown, data)

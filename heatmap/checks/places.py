"""Labels that lie where their picture does not show anything: those of another picture, say.

Where an animal is can be told from a very small picture. A kernel ridge regression from 16×16 grey
levels to the middle of the labels predicts every picture from all others; its leave-one-out errors
have a closed form, so that nothing is trained (Allen's PRESS, Technometrics 1974).
"""

from typing import Any

import numpy as np

from heatmap.checks import shapes
from heatmap.checks.duplicates import standard
from heatmap.checks.finding import OK, WARN, Finding, named

NAME = "places"
_LEAST = 100  # pictures to learn from
_MOST = 1000  # at once: the regression takes the third power of this
_COMMON = 0.9  # of the instances, in which a point must be labelled to count for the middle
_FAR = 10.0  # standard deviations from the prediction
_WORSE = 1.25  # times as far off as a guess without looking, typically
_LEAST_OFF = 0.1  # of the picture: of things in its middle there is nothing to tell
_RIDGES = 10.0 ** np.arange(-5, 3)
_SHOWN = 5


def check(records, first: np.ndarray, cells: np.ndarray) -> Finding:
    """Compares the labels of each picture with what it should have by all others.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
      first: [P] a record of each picture.
      cells: [P, 16, 16] grey levels, from `duplicates.fingerprint`.
    """
    counts = dict(zip(*np.unique(records.ids, return_counts=True), strict=True))
    common = records.labelled.mean(axis=0) >= _COMMON
    usable = np.array([counts[records.ids[row]] == 1 for row in first], bool)
    usable &= records.labelled[first][:, common].all(axis=1) & common.any()
    rows = first[usable]
    if len(rows) < _LEAST:
        message = f"needs {_LEAST} pictures of one instance each: not looked for"
        return Finding(OK, NAME, message)
    sizes = records.sizes[rows][:, ::-1]  # width, height
    middle = (records.keypoints[rows][:, common].mean(axis=1) + 0.5) / sizes
    pictures, _ = standard(cells[usable])
    parts = -(-len(rows) // _MOST)
    errors = np.empty(middle.shape)
    for part in range(parts):  # each sees every stretch of the data
        errors[part::parts] = leave_one_out(pictures[part::parts], middle[part::parts])
    off = np.linalg.norm(errors, axis=1)
    usual = float(np.median(off))
    guess = float(np.median(np.linalg.norm(middle - np.median(middle, axis=0), axis=1)))
    furthest = max(_FAR * usual / shapes.RAYLEIGH, _WORSE * guess, _LEAST_OFF)
    data: dict[str, Any] = {"usual": usual, "guess": guess, "furthest_usual": furthest}
    if furthest > 2 * guess:
        message = (
            "very small pictures do not tell where the labels lie, or these lie in one place: not "
            "looked for"
        )
        return Finding(OK, NAME, message, data=data)
    order = np.argsort(-off, kind="stable")
    wrong = rows[order[off[order] > furthest]]
    data["unexpected"] = named(records, wrong)
    told = f"very small copies of the pictures tell where they are to {usual:.1%} of the picture"
    if not len(wrong):
        message = f"all labels lie where their pictures show something; {told}"
        return Finding(OK, NAME, message, data=data)
    shown = tuple(
        f"{name}: {off[i]:.0%} of the picture off"
        for name, i in zip(data["unexpected"][:_SHOWN], order, strict=False)
    )
    message = (
        f"{len(wrong)} of {len(rows)} pictures have their labels elsewhere than pictures like "
        f"them, as if they were those of another one; {told}: look at"
    )
    return Finding(WARN, NAME, message, shown, data)


def leave_one_out(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """Predicts each output from all other pairs and returns the errors.

    The kernel is Gaussian, as wide as two inputs are typically apart; the ridge is the one with
    the smallest median error.

    Args:
      inputs: [n, D].
      outputs: [n, d].

    Returns:
      [n, d], output less prediction.
    """
    square = np.sum(inputs**2, axis=1)
    apart = np.maximum(square[:, None] + square - 2 * inputs @ inputs.T, 0)
    kernel = np.exp(-apart / max(float(np.median(apart)), 1e-12))
    # Centred, for an intercept that has no ridge.
    kernel = kernel - kernel.mean(axis=0) - kernel.mean(axis=1)[:, None] + kernel.mean()
    values, vectors = np.linalg.eigh(kernel)
    values = np.maximum(values, 0)
    centred = outputs - outputs.mean(axis=0)
    turned = vectors.T @ centred
    best = None
    for ridge in _RIDGES * values.mean():
        shrunk = values / (values + max(ridge, 1e-12))
        leverage = 1 / len(inputs) + (vectors**2) @ shrunk
        residual = centred - vectors @ (shrunk[:, None] * turned)
        errors = residual / np.maximum(1 - leverage, 1e-6)[:, None]
        typical = float(np.median(np.linalg.norm(errors, axis=1)))
        if best is None or typical < best[0]:
            best = typical, errors
    assert best is not None
    return best[1]

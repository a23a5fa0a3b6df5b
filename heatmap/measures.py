"""Lengths between points: how far off a measured line is, in pixels, centimetres and per cent.

`KeypointSet.measurements` names the lines. Everything is taken after predictions were mapped back
to the original picture, and interchangeable pairs in the order that suits the predictions better,
once per pair; the length of a line between such a pair does not depend on it.

Centimetres need the picture's scale. Instances without one are left out of them, and counted.
"""

import numpy as np

from heatmap.config import EvalConfig
from heatmap.keypoints import KeypointSet
from heatmap.pairs import distance
from heatmap.predictions import Predictions, interchange, point_errors, summary


def lines(predictions: Predictions, points: KeypointSet, config: EvalConfig) -> dict[str, float]:
    """Measures the lines that the points span.

    A line counts if both its ends are labelled; a lost prediction has an infinite error.

    Args:
      predictions: N instances.
      points: the meaning of their points, with `measurements`.
      config: not read.

    Returns:
      `point_err_cm`, the mean distance of all labelled points; for each measurement
      `<name>_line_err_cm`, the mean of |predicted length - true length|, `…_px`, and `…_pct`, per
      cent of the true length; `line_err_…`, the same over all measurements; each with `/median`,
      `/p95`, `/max` and `/rmse`; and `line_err_cm/excluded`, the lines on pictures without a scale.
      Nothing if the points have no measurements.
    """
    if not points.measurements:
        return {}
    ordered = interchange(predictions, points)
    true, errors = _lengths(ordered, points)  # [N, M]
    scale = np.where(ordered.px_per_cm > 0, ordered.px_per_cm, np.nan)[:, None]
    scores = summary("point_err_cm", point_errors(ordered) / scale)
    for unit, values in {
        "px": errors,
        "cm": errors / scale,
        "pct": 100 * errors / np.where(true > 0, true, np.nan),
    }.items():
        scores |= summary(f"line_err_{unit}", values)
        for m, (name, *_) in enumerate(points.measurements):
            scores |= summary(f"{name}_line_err_{unit}", values[:, m])
    lost = np.isnan(scale) & ~np.isnan(errors)
    return scores | {"line_err_cm/excluded": float(lost.sum())}


def by_species(
    predictions: Predictions, points: KeypointSet, config: EvalConfig
) -> dict[str, float]:
    """Measures each species by itself.

    Args:
      predictions: N instances of one data set.
      points: the meaning of their points.
      config: passed on.

    Returns:
      `species/<name>/<score>` for what `lines` measures in centimetres and per cent, of every
      species that is named.
    """
    scores: dict[str, float] = {}
    for name in np.unique(predictions.species[predictions.species != ""]):
        found = lines(predictions.take(predictions.species == name), points, config)
        short = str(name).replace("/", "_")  # a slash divides the names of scores
        scores |= {
            f"species/{short}/{key}": value
            for key, value in found.items()
            if key.split("/")[0].endswith(("_cm", "_pct")) and not key.endswith("/excluded")
        }
    return scores


def _lengths(predictions: Predictions, points: KeypointSet) -> tuple[np.ndarray, np.ndarray]:
    """Returns true lengths and errors of length [N, M] px, NaN where an end is not labelled."""
    first, second = (list(ends) for ends in zip(*(m[1:] for m in points.measurements), strict=True))
    labelled = (predictions.weight[:, first] > 0) & (predictions.weight[:, second] > 0)
    predicted, truth = (
        # NaN, not infinity: the difference of two infinite points would warn
        np.where(np.isfinite(ends), ends, np.nan)
        for ends in (predictions.predicted, predictions.truth)
    )
    true = np.where(labelled, distance(truth[:, first], truth[:, second]), np.nan)
    return true, np.abs(distance(predicted[:, first], predicted[:, second]) - true)

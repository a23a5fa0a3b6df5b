"""Labels that a trained model contradicts: its worst errors on examples that it has not seen."""

import pathlib

import numpy as np

from heatmap import prediction_table
from heatmap.checks.finding import OK, WARN, Finding
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.predictions import interchange, point_errors

NAME = "predictions"
_FENCE = 3.0  # quartile distances above the upper quartile, of the logarithm: Tukey's "far out"
_SHOWN = 5


def check(folder: pathlib.Path, points: KeypointSet) -> Finding:
    """Lists the labels that are further from their prediction than all others.

    Args:
      folder: the workdir of a finished run.
      points: whose order, where it is arbitrary, is that which suits the predictions better.

    Raises:
      UserError: if the run has no predictions, or they are of other points.
    """
    files = sorted((folder / "predictions").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder} holds no predictions: let the run finish.")
    listed = []
    total = 0
    for path in files:
        predictions = interchange(prediction_table.load(path, points.names), points)
        errors = point_errors(predictions)
        total += int(np.isfinite(errors).sum())
        fence = _fence(errors)
        listed += [
            {
                "split": path.stem,
                "record": str(predictions.ids[row]),
                "instance": int(predictions.instances[row]),
                "point": points.names[k],
                "error_px": round(float(errors[row, k]), 1),
            }
            for row, k in zip(*np.nonzero(np.nan_to_num(errors) > fence), strict=True)
        ]
    listed.sort(key=lambda one: -float(one["error_px"]))
    data = {"labels": total, "contradicted": listed}
    if not listed:
        message = f"no error of {folder} stands out among its {total} of held-out labels"
        return Finding(OK, NAME, message, data=data)
    rows = tuple(
        f"{one['split']} {one['record']}: {one['point']} is {one['error_px']:g} px from its label"
        for one in listed[:_SHOWN]
    )
    message = (
        f"{len(listed)} of {total} held-out labels are far further from what {folder} predicts "
        "than all others: look at"
    )
    return Finding(WARN, NAME, message, rows, data)


def _fence(errors: np.ndarray) -> float:
    """Returns the error in pixels beyond which one stands out."""
    positive = errors[np.isfinite(errors) & (errors > 0)]
    if not len(positive):
        return np.inf
    low, high = np.quantile(np.log(positive), [0.25, 0.75])
    return float(np.exp(high + _FENCE * (high - low)))

"""What an artefact tells besides points: lengths, and a calibration's intervals and confidence."""

import jax.numpy as jnp
import numpy as np
from jax import lax

from heatmap.decoding import Decoded
from heatmap.export.program import Extra, Outputs
from heatmap.inference import uncertainty
from heatmap.inference.uncertainty import Calibration, Steps
from heatmap.keypoints import KeypointSet


def extra(calibration: Calibration | None, points: KeypointSet) -> Extra:
    """Returns what adds to the outputs of a program.

    Args:
      calibration: of the run, or None.
      points: what its points mean.

    Returns:
      A function that gives the `lengths` [M] px of measurements, if there are any. With a
      calibration also `radius` [K, L] px, of discs by level, `confidence` [K], `visibility` [K],
      as far as it knows them, and the `half_widths` [M, L] px of the lengths; NaN where too few
      groups were there to calibrate with.
    """
    lines = points.measurements

    def outputs(found: Decoded, original_from_input, places) -> Outputs:
        given: Outputs = {}
        if lines:
            along = jnp.stack([_at(places, b) - _at(places, a) for _, a, b in lines])
            given["lengths"] = jnp.sqrt((along * along).sum(axis=-1))
        if calibration is None:
            return given
        unit = jnp.stack([original_from_input[0, 0], original_from_input[1, 1]])
        scales = unit[:, None] * unit[None, :]
        wide = jnp.where(jnp.isnan(found.covariance[0]), jnp.eye(2), found.covariance[0]) * scales
        radius = uncertainty.point_scale(wide, unit, jnp)[:, None]
        given["radius"] = radius * jnp.float32(calibration.point_factors(points.names))
        if calibration.confidence:
            given["confidence"] = _look_up(calibration.confidence, found.score[0])
        if calibration.visibility:
            given["visibility"] = _look_up(calibration.visibility, found.score[0])
        if lines:
            ends = jnp.stack([_at(wide, a) + _at(wide, b) for _, a, b in lines])
            width = uncertainty.length_scale(along, ends, unit, jnp)[:, None]
            given["half_widths"] = width * jnp.float32(calibration.line_factors(lines))
        return given

    return outputs


def _at(array, index: int):
    """Takes one point by a slice: fewer runtimes know how to gather."""
    return lax.index_in_dim(array, index, keepdims=False)


def _look_up(steps: Steps, score):
    """Does what `Steps` does, without a search, which few runtimes have."""
    score = jnp.where(jnp.isnan(score), 0.0, score)
    rises = np.diff(steps.values, prepend=0.0)
    starts = (-np.inf, *steps.scores[1:])  # below the first step its value holds
    reached = score[:, None] >= jnp.float32(starts)
    return jnp.where(reached, jnp.float32(rises), 0.0).sum(axis=-1)

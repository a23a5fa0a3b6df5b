"""Whether the maps say anything: their height and spread at every validation, and collapse.

Most of a target map is empty, so a network can earn a small loss with maps that are empty
throughout; and under cross-entropy, with maps that are flat.
"""

import math

import numpy as np

from heatmap.config import Config
from heatmap.fields import choose
from heatmap.losses import LOSSES
from heatmap.predictions import Predictions, mean

# A map whose entropy is this share of the largest possible one is nearly uniform.
_NEAR_UNIFORM = 0.99
# Squared error: a peak has the height one, and a network needs some steps to raise any.
_LEAST_HEIGHT = 0.1
_PATIENCE_STEPS = 1000


def measure(
    predictions: Predictions, names: tuple[str, ...], map_size: tuple[int, int]
) -> dict[str, float]:
    """Describes the maps of labelled points.

    Args:
      predictions: of one split.
      names: of the K points.
      map_size: (height, width).

    Returns:
      For each point and, without its name, for all of them: `maps/max_logit/<point>`, the mean of
      the largest values, in heights of a target's peak; `maps/entropy/<point>`, nats;
      `maps/near_uniform/<point>`, the share of maps with more than 0.99 of the largest possible
      entropy. Nothing for a model without maps.
    """
    labelled = predictions.weight > 0
    if np.isnan(predictions.height).all():
        return {}
    most = math.log(map_size[0] * map_size[1])
    columns = {
        "max_logit": predictions.height,
        "entropy": predictions.entropy,
        "near_uniform": (predictions.entropy > _NEAR_UNIFORM * most).astype(np.float64),
    }
    scores = {}
    for name, values in columns.items():
        values = np.where(labelled, values, np.nan)
        scores[f"maps/{name}"] = mean(values)
        scores |= {f"maps/{name}/{point}": mean(values[:, k]) for k, point in enumerate(names)}
    return scores


def collapsed(scores: dict[str, float], names: tuple[str, ...], config: Config, step: int) -> str:
    """Says in a sentence which maps have collapsed, or nothing.

    Maps trained by cross-entropy have if their mean entropy is nearly that of a uniform map, maps
    trained by squared error if after 1,000 steps the mean of their largest values is below a tenth
    of a peak. (Their entropy as a softmax says nothing: that of a perfect map is nearly uniform.)

    Args:
      scores: from `measure`, without the split's name.
      names: of the K points.
      config: the run's config.
      step: number of steps taken.
    """
    kind = choose(LOSSES, config.loss.name, "loss.name").trains
    height, width = config.targets.heatmap_size
    if kind == "logits":
        limit = _NEAR_UNIFORM * math.log(height * width)
        flat = [n for n in names if scores.get(f"maps/entropy/{n}", 0) > limit]
        reason = "are as flat as a uniform map"
    elif kind == "peak" and step >= _PATIENCE_STEPS:
        flat = [n for n in names if scores.get(f"maps/max_logit/{n}", 1) < _LEAST_HEIGHT]
        reason = f"reach less than {_LEAST_HEIGHT:g} of a peak on average"
    else:
        return ""
    if not flat:
        return ""
    return (
        f"Step {step}: the maps of {', '.join(flat)} {reason}, so nothing is found; try another "
        "optim.learning_rate or a larger targets.sigma."
    )

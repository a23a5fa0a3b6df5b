"""Training objectives, and the masks and interchangeable pairs that they share.

A loss is one function `(prediction, target) -> [B, K]`, the mean error of each point, and one line
in LOSSES. Weights, the cheaper order of a pair and the average over what is labelled are written
once, in `weighted_sum`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.keypoints import involution

_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Loss:
    """An objective and what follows from it.

    Attributes:
      per_point: maps (prediction, target) to the error of each point, [B, K].
      trains: what the prediction becomes: maps with a 'peak' of height one, maps of 'logits', or
        'coordinates'. Decoders say which of these they read.
      sees_absence: whether an empty target teaches that a point is not in the picture.
    """

    per_point: Callable[[jax.Array, jax.Array], jax.Array]
    trains: str
    sees_absence: bool


def mean_squared_error(maps, target):
    """Mean over pixels of (map - target)², maps [B, h, w, K] to [B, K]."""
    return jnp.mean((maps - target) ** 2, axis=(1, 2))


def spatial_cross_entropy(maps, target):
    """Cross-entropy of softmax(map) against the normalised target, less the target's entropy.

    The excess (the Kullback-Leibler divergence, in nats) is zero for a perfect map whatever σ and
    however much of the Gaussian the border cuts off, so that runs with different σ compare.

    Args:
      maps: [B, h, w, K] logits.
      target: [B, h, w, K], not negative; a map without mass gives a finite, meaningless value and
        must have weight zero.

    Returns:
      [B, K].
    """
    batch, height, width, points = maps.shape
    flat = (batch, height * width, points)
    log_predicted = jax.nn.log_softmax(maps.reshape(flat), axis=1)
    mass = target.reshape(flat)
    mass = mass / jnp.maximum(mass.sum(1, keepdims=True), _TINY)
    return jnp.sum(jax.scipy.special.xlogy(mass, mass) - mass * log_predicted, axis=1)


def coordinate_mse(coordinates, target):
    """Mean over x and y of the squared difference of [0, 1] coordinates [B, K, 2], to [B, K]."""
    return jnp.mean((coordinates - target) ** 2, axis=-1)


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of an objective.

    Attributes:
      per_point: (prediction, target) -> [B, K].
      prediction: what is scored.
      target: of the same shape, points on the last axis of maps, the second of coordinates.
      weights: [B, K], how much each point of the target counts.
    """

    per_point: Callable[[jax.Array, jax.Array], jax.Array]
    prediction: jax.Array
    target: jax.Array
    weights: jax.Array

    def cost(self, order) -> jax.Array:
        """Returns the weighted errors [B, K] with the target's points in another order [K]."""
        axis = 1 if self.target.ndim == 3 else 3
        target = jnp.take(self.target, order, axis=axis)
        return self.per_point(self.prediction, target) * self.weights[:, order]


def weighted_sum(terms: Sequence[Term], pairs=()):
    """Sums the weighted errors, each interchangeable pair in its cheaper order.

    The order is that of all terms together. On a swap the weights travel with the points that they
    belong to. Pairs decide independently.

    Args:
      terms: of the objective, the first of which is the loss itself.
      pairs: ((a, b), …), the indices that may change places.

    Returns:
      (sum of error · weight, sum of the first term's weights), scalars.
    """
    points = terms[0].weights.shape[1]

    def total(order):
        return functools.reduce(jnp.add, (term.cost(order) for term in terms))  # [B, K]

    cost = total(np.arange(points))
    if pairs:
        swapped = total(involution(points, pairs))
        first, second = np.array(pairs).T
        better = swapped[:, first] + swapped[:, second] < cost[:, first] + cost[:, second]  # [B, P]
        use = jnp.zeros(cost.shape, bool).at[:, first].set(better).at[:, second].set(better)
        cost = jnp.where(use, swapped, cost)
    return jnp.sum(cost), jnp.sum(terms[0].weights)


def mean(total, weight):
    """Divides, giving zero where nothing is labelled."""
    return total / jnp.maximum(weight, _TINY)


def check(config: Config, output: str) -> None:
    """Refuses a loss that cannot score the model's output.

    Raises:
      UserError: naming both fields.
    """
    loss = choose(LOSSES, config.loss.name, "loss.name")
    if (loss.trains == "coordinates") != (output == "coordinates"):
        wanted = output == "coordinates"
        fitting = [n for n, c in LOSSES.items() if (c.trains == "coordinates") == wanted]
        raise UserError(
            f"model.name={config.model.name!r} gives {output}, which loss.name="
            f"{config.loss.name!r} cannot score; choose {' or '.join(fitting)}."
        )


LOSSES = {
    "mse": Loss(mean_squared_error, trains="peak", sees_absence=True),
    "cross_entropy": Loss(spatial_cross_entropy, trains="logits", sees_absence=False),
    "coordinate_mse": Loss(coordinate_mse, trains="coordinates", sees_absence=False),
}

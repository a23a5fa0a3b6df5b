"""Training objectives, and the masks and interchangeable pairs that they share.

A loss is one function `(prediction, target) -> [B, K]`, the mean error of each point, and one line
in LOSSES. Weights, the cheaper order of a pair and the average over what is labelled are written
once, in `weighted_sum`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from heatmap import geometry, targets
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.keypoints import LABELLED, UNKNOWN, KeypointSet, involution

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


def compute(
    config: Config,
    points: KeypointSet,
    prediction: jax.Array,
    batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Scores a batch.

    Args:
      config: the run's config.
      points: what the K points mean.
      prediction: the model's output, [B, h, w, K] or [B, K, 2].
      batch: `keypoints` [B, K, 2] in input pixels, `visibility` [B, K], `_mask` [B], and
        `heatmaps` [B, h, w, K] where the host rendered them.

    Returns:
      (sum of the weighted errors, sum of the weights): their quotient is the loss, and sums over
      batches give the loss of a split. An error is a mean over the pixels of one map, so the loss
      is normalised by the number of active elements.
    """
    loss = choose(LOSSES, config.loss.name, "loss.name")
    target = target_of(config, batch)
    weights = point_weights(config, loss, points, batch["keypoints"], batch["visibility"])
    weights = weights * batch["_mask"][:, None]
    pairs = points.interchangeable_pairs if config.loss.interchangeable else ()
    return weighted_sum(loss.per_point, prediction, target, weights, pairs)


def target_of(config: Config, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns what the model should give: maps [B, h, w, K], or coordinates [B, K, 2]."""
    if choose(LOSSES, config.loss.name, "loss.name").trains == "coordinates":
        return geometry.normalise(batch["keypoints"], config.data.image_size, jnp)
    if "heatmaps" in batch:
        return batch["heatmaps"]
    maps = targets.gaussian(
        jnp,
        batch["keypoints"],
        config.data.image_size,
        config.targets.heatmap_size,
        config.targets.sigma,
    )
    return maps * (batch["visibility"] == LABELLED)[:, None, None, :]


def point_weights(config: Config, loss: Loss, points: KeypointSet, keypoints, visibility):
    """Weighs each point, [B, K]: what is unknown never counts.

    A squared error of maps also learns that a point is absent or beyond the border, where the
    target is empty or a tail. A distribution over pixels, and coordinates in [0, 1], cannot say
    "nowhere": there such points have weight zero. `loss.oob_policy` may take more away.
    """
    counted = visibility != UNKNOWN if loss.sees_absence else visibility == LABELLED
    outside = _out_of_bounds(config, keypoints, visibility)
    if not loss.sees_absence:
        counted &= ~outside
    if config.loss.oob_policy != "supervise_oob":
        counted &= ~_masked(points, outside, visibility, config.loss.oob_policy == "mask_all_oob")
    return counted.astype(jnp.float32)


def out_of_bounds_share(config: Config, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which share of a batch's labelled points lies out of the input, 0 if none is."""
    real = batch["_mask"][:, None]
    outside = _out_of_bounds(config, batch["keypoints"], batch["visibility"])
    labelled = batch["visibility"] == LABELLED
    return mean(jnp.sum(outside * real), jnp.sum(labelled * real))


def _out_of_bounds(config: Config, keypoints, visibility):
    """Says which labelled points [B, K] lie out of the network's input."""
    return (visibility == LABELLED) & ~geometry.inside(keypoints, config.data.image_size)


def _masked(points: KeypointSet, outside, visibility, only_whole: bool):
    """Says which points [B, K] an out-of-bounds policy masks.

    The ends of a measurement or an interchangeable pair share their fate, over all lines that meet
    in a point; any other point is masked where it is outside itself.

    Args:
      points: with the lines.
      outside: [B, K] bool, labelled and out of bounds.
      visibility: [B, K].
      only_whole: mask a line only where all of its labelled ends are outside, not where any is.
    """
    pairs = {*points.interchangeable_pairs, *((a, b) for _, a, b in points.measurements)}
    lone = np.array([k not in {i for pair in pairs for i in pair} for k in range(points.count)])
    masked = jnp.asarray(outside & lone)
    for pair in pairs:
        ends = np.array(pair)
        out = outside[:, ends]
        if only_whole:
            gone = jnp.all(out | (visibility[:, ends] != LABELLED), 1) & jnp.any(out, 1)
        else:
            gone = jnp.any(out, 1)
        masked = masked.at[:, ends].set(masked[:, ends] | gone[:, None])
    return masked


def weighted_sum(per_point, prediction, target, weights, pairs=()):
    """Sums the weighted errors, each interchangeable pair in its cheaper order.

    On a swap the weights travel with the points that they belong to. Pairs decide independently.

    Args:
      per_point: (prediction, target) -> [B, K].
      prediction: the model's output.
      target: of the same shape, points on the last axis of maps, the second of coordinates.
      weights: [B, K].
      pairs: ((a, b), …), the indices that may change places.

    Returns:
      (sum of error · weight, sum of weights), scalars.
    """
    cost = per_point(prediction, target) * weights  # [B, K]
    if pairs:
        permutation = involution(weights.shape[1], pairs)
        axis = 1 if target.ndim == 3 else 3
        swapped_target = jnp.take(target, permutation, axis=axis)
        swapped = per_point(prediction, swapped_target) * weights[:, permutation]
        first, second = np.array(pairs).T
        better = swapped[:, first] + swapped[:, second] < cost[:, first] + cost[:, second]  # [B, P]
        use = jnp.zeros(weights.shape, bool).at[:, first].set(better).at[:, second].set(better)
        cost = jnp.where(use, swapped, cost)
    return jnp.sum(cost), jnp.sum(weights)


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

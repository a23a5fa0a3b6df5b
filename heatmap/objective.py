"""What a run minimises: the loss that its config names, on the targets and points that count.

The formulas are those of `heatmap.losses`; here they meet the config, the labels and the decoder.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from heatmap import decoding, geometry, losses, targets
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.keypoints import LABELLED, UNKNOWN, KeypointSet
from heatmap.losses import LOSSES, Loss, Term, mean, weighted_sum


def check(config: Config, output: str) -> None:
    """Refuses a loss that cannot score the model's output, and parts that do not fit the loss.

    Args:
      config: the run's config.
      output: of the model: 'heatmaps' or 'coordinates'.

    Raises:
      UserError: naming the fields.
    """
    losses.check(config, output)
    decoding.check(config)
    trains = choose(LOSSES, config.loss.name, "loss.name").trains
    if config.targets.equal_energy and trains != "peak":
        raise UserError(
            f"targets.equal_energy=True changes nothing under loss.name={config.loss.name!r}, "
            "which does not see how high a target is; leave it out, or choose mse."
        )
    if config.loss.coordinate_weight and trains == "coordinates":
        raise UserError(
            f"loss.coordinate_weight is for maps, and loss.name={config.loss.name!r} trains "
            "coordinates already; set it to 0."
        )
    if config.loss.coordinate_weight and not decoding.DECODERS[config.decoder.name].has_gradient:
        able = [n for n, d in decoding.DECODERS.items() if d.has_gradient and trains in d.reads]
        raise UserError(
            f"loss.coordinate_weight trains through the decoder, and decoder.name="
            f"{config.decoder.name!r} has no gradient; choose {', '.join(able)}."
        )


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
      is normalised by the number of active elements. An auxiliary coordinate loss is added per
      point, `loss.coordinate_weight` times.
    """
    loss = choose(LOSSES, config.loss.name, "loss.name")
    real = batch["_mask"][:, None]
    weights = point_weights(config, loss, points, batch["keypoints"], batch["visibility"]) * real
    terms = [Term(loss.per_point, prediction, target_of(config, batch), weights)]
    if config.loss.coordinate_weight:
        terms.append(_coordinate_term(config, points, prediction, batch))
    pairs = points.interchangeable_pairs if config.loss.interchangeable else ()
    return weighted_sum(terms, pairs)


def _coordinate_term(
    config: Config, points: KeypointSet, maps: jax.Array, batch: Mapping[str, jax.Array]
) -> Term:
    """Scores what the decoder reads off the maps, so that maps are trained to be read well."""
    size, coordinates = config.data.image_size, LOSSES["coordinate_mse"]
    keypoints, visibility = batch["keypoints"], batch["visibility"]
    weights = point_weights(config, coordinates, points, keypoints, visibility)
    return Term(
        coordinates.per_point,
        geometry.normalise(decoding.decode(config, maps).keypoints, size, jnp),
        geometry.normalise(keypoints, size, jnp),
        config.loss.coordinate_weight * weights * batch["_mask"][:, None],
    )


def target_of(config: Config, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns what the model should give: maps [B, h, w, K], or coordinates [B, K, 2]."""
    if choose(LOSSES, config.loss.name, "loss.name").trains == "coordinates":
        return geometry.normalise(batch["keypoints"], config.data.image_size, jnp)
    if "heatmaps" in batch:
        return batch["heatmaps"]
    maps = targets.render(jnp, batch["keypoints"], config)
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

"""From maps to coordinates: where the point is, how sure the map is, how spread it is.

A decoder is one function `(maps, kind, config) -> [B, K, 2]` in heatmap pixels and one line in
DECODERS that says which kinds of map it reads: 'peak' (trained by squared error, height one at the
point), 'logits' (trained by cross-entropy: log-probabilities up to a constant) or 'coordinates'.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from heatmap import geometry, targets
from heatmap.config import Config, DecoderConfig
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.losses import LOSSES

# Below this inverse temperature the background of a 'peak' map outweighs its peak in a softmax:
# for σ = 2 on 64×64 the peak holds 33 of 4,129 at β = 1.
_LEAST_PEAK_BETA = 10.0
_TINY = 1e-12
_LOG_FLOOR = 1e-6  # a map trained by squared error may be slightly negative; its log is clipped


class Decoded(NamedTuple):
    """What is read off a batch of predictions.

    Attributes:
      keypoints: [B, K, 2], (x, y) in pixels of the network's input.
      score: [B, K] in [0, 1]; a peak's height, or the probability near the peak; NaN where the
        model gives coordinates only.
      entropy: [B, K] in nats, of the map as a distribution; NaN likewise.
      height: [B, K], the largest value of the map, one for a perfect peak; NaN likewise.
      covariance: [B, K, 2, 2] of (x, y), px² of the input, by `covariance`; NaN likewise.
    """

    keypoints: jax.Array
    score: jax.Array
    entropy: jax.Array
    height: jax.Array
    covariance: jax.Array


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A way to read maps.

    Attributes:
      locate: (maps, kind, config) -> [B, K, 2] in heatmap pixels.
      reads: the kinds of map that it can read.
      has_gradient: whether moving the maps a little moves the answer a little.
    """

    locate: Callable[[jax.Array, str, DecoderConfig], jax.Array]
    reads: tuple[str, ...]
    has_gradient: bool = True


def decode(config: Config, prediction: jax.Array) -> Decoded:
    """Reads a model's output as `config.decoder` says.

    Args:
      config: the run's config.
      prediction: [B, h, w, K] raw maps, or [B, K, 2] coordinates in [0, 1].

    Returns:
      Points in input pixels, with score and entropy.
    """
    kind = choose(LOSSES, config.loss.name, "loss.name").trains
    decoder = choose(DECODERS, decoder_name(config), "decoder.name")
    if kind == "peak":  # decoders and scores expect peaks of height one
        prediction = prediction / targets.peak(config.targets)
    located = decoder.locate(prediction, kind, config.decoder)
    if kind == "coordinates":
        keypoints = geometry.denormalise(located, config.data.image_size, jnp)
        unknown = jnp.full(keypoints.shape[:2], jnp.nan)
        spread = jnp.full((*keypoints.shape[:2], 2, 2), jnp.nan)
        return Decoded(keypoints, unknown, unknown, unknown, spread)
    size, input_size = (prediction.shape[1], prediction.shape[2]), config.data.image_size
    strides = jnp.array([input_size[1] / size[1], input_size[0] / size[0]])  # of x and y
    return Decoded(
        geometry.rescale(located, size, input_size, jnp),
        score(prediction, kind, config.decoder),
        entropy(prediction, kind),
        prediction.max(axis=(1, 2)),
        covariance(prediction, kind, config.targets.sigma) * jnp.outer(strides, strides),
    )


def decoder_name(config: Config) -> str:
    """Returns the decoder in use: coordinates need none, so the field is not consulted there."""
    trains = choose(LOSSES, config.loss.name, "loss.name").trains
    return "coordinates" if trains == "coordinates" else config.decoder.name


def check(config: Config) -> None:
    """Refuses a decoder that cannot read what the loss trains, unless `decoder.force`.

    Raises:
      UserError: saying why, and which decoders can.
    """
    kind = choose(LOSSES, config.loss.name, "loss.name").trains
    choose(DECODERS, config.decoder.name, "decoder.name")  # a typo, even where it is not used
    name = decoder_name(config)
    decoder = choose(DECODERS, name, "decoder.name")
    fits = kind in decoder.reads
    if name == "soft_argmax" and kind == "peak":
        fits = config.decoder.beta >= _LEAST_PEAK_BETA
    if fits or (config.decoder.force and name != "coordinates"):  # maps have no coordinates
        return
    able = [n for n, d in DECODERS.items() if kind in d.reads and n != "soft_argmax"]
    hint = f" or set decoder.beta to {_LEAST_PEAK_BETA:g} or more" if name == "soft_argmax" else ""
    raise UserError(
        f"decoder.name={name!r} (beta {config.decoder.beta:g}) cannot read the maps that "
        f"loss.name={config.loss.name!r} trains: choose {', '.join(able)}{hint}; "
        "decoder.force=True overrides."
    )


def peak(maps):
    """Returns the column and row of each map's largest value, two int arrays [B, K]."""
    batch, height, width, points = maps.shape
    index = jnp.argmax(maps.reshape(batch, height * width, points), axis=1)
    return index % width, index // width


def argmax(maps, kind, config):
    """The centre of the largest pixel: quantised, 0.38 strides of mean error by itself."""
    del kind, config
    return jnp.stack(peak(maps), axis=-1).astype(jnp.float32)


def soft_argmax(maps, kind, config):
    """The mean position under softmax(β·map) (Sun et al., ECCV 2018, arXiv:1711.08229).

    Exact on log-probabilities in the interior; near the border the cut-off Gaussian's mean lies
    inside its peak, by up to 0.8σ a side, and no map gives a point beyond the outermost centres.

    With `decoder.grid='edges'` the mean is stretched about the map's centre so that the outermost
    pixels stand for the picture's edges: every point of the picture can be reached, at the price
    of an error that grows from nothing in the centre to half a heatmap pixel at the edges.
    """
    del kind
    flat = maps.reshape(maps.shape[0], -1, maps.shape[3])
    weights = jax.nn.softmax(config.beta * flat, axis=1)
    mean = _centre_of_mass(weights.reshape(maps.shape))
    if config.grid == "centres":
        return mean
    pixels = jnp.array([maps.shape[2], maps.shape[1]], mean.dtype)  # w, h
    return mean * pixels / (pixels - 1) - 0.5


def local_soft_argmax(maps, kind, config):
    """The centre of mass in a window round the peak, which the far background cannot pull.

    What the window cuts off pulls towards the centre of the peak's pixel: by at most 0.012 heatmap
    pixels with a radius of 3σ, 0.12 with 2σ, 0.4 with 1σ; and where the image border cuts, by up to
    the distance that a half Gaussian's mean has from its peak, 0.8σ a side. DARK has neither pull.
    """
    return _centre_of_mass(_distribution(maps, kind) * _window(maps, config.radius))


def dark(maps, kind, config):
    """A Newton step on the log-map from its peak (DARK, Zhang et al., CVPR 2020), not smoothed.

    The logarithm of a Gaussian is a quadratic, so the step is exact on a noiseless Gaussian,
    also where the border cuts it off: there the stencil moves one pixel inside. Where the log-map
    has no peak, the largest pixel stands. Maps must be at least 3×3.
    """
    del config
    height, width = maps.shape[1:3]
    peak_column, peak_row = peak(maps)
    column, row = jnp.clip(peak_column, 1, width - 2), jnp.clip(peak_row, 1, height - 2)
    flat = maps.reshape(maps.shape[0], height * width, -1)
    around = np.array([dy * width + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    stencil = jnp.take_along_axis(flat, (row * width + column)[:, None] + around[:, None], axis=1)
    if kind == "peak":
        stencil = jnp.log(jnp.maximum(stencil, _LOG_FLOOR))
    # North is up; each [B, K].
    nw, n, ne, w, centre, e, sw, s, se = (stencil[:, i] for i in range(9))

    gx, gy = (e - w) / 2, (s - n) / 2
    hxx, hyy = e - 2 * centre + w, s - 2 * centre + n
    hxy = (se - ne - sw + nw) / 4
    determinant = hxx * hyy - hxy**2
    is_peak = (determinant > _TINY) & (hxx < 0)
    safe = jnp.where(is_peak, determinant, 1.0)
    # An interior peak needs half a pixel, one beyond the border more than one because its stencil
    # was moved; further than two, a flat or noisy map has thrown the step away.
    dx = jnp.clip((hxy * gy - hyy * gx) / safe, -2, 2)
    dy = jnp.clip((hxy * gx - hxx * gy) / safe, -2, 2)
    x = jnp.where(is_peak, column + dx, peak_column)
    y = jnp.where(is_peak, row + dy, peak_row)
    return jnp.stack([x, y], axis=-1)


def coordinates(prediction, kind, config):
    """What a regression net gives is already a position."""
    del kind, config
    return prediction


def score(maps, kind, config):
    """Rates each map in [0, 1], [B, K].

    A 'peak' map: the height of the peak, one where the network is certain. A 'logits' map: the
    probability within `decoder.radius` of the peak.
    """
    if kind == "peak":
        return jnp.clip(maps.max(axis=(1, 2)), 0.0, 1.0)
    return (_distribution(maps, kind) * _window(maps, config.radius)).sum(axis=(1, 2))


def entropy(maps, kind):
    """The entropy in nats of each map as a distribution over pixels, [B, K].

    A 'peak' map without a positive value says nothing about where, so it counts as uniform.
    """
    p = _distribution(maps, kind)
    return -jax.scipy.special.xlogy(p, p).sum(axis=(1, 2))


def covariance(maps, kind, sigma):
    """Measures how wide each map is round its peak, as a distribution over pixels.

    At the optimum of either loss a map is the average of the target Gaussians at all the places
    where the point may be (for squared error up to a factor), so that this is σ² plus the
    covariance of the place itself, as far as the window of three σ each way holds it
    (heatmap/inference/place.py undoes both).

    Args:
      maps: [B, h, w, K].
      kind: 'peak' or 'logits'.
      sigma: of the targets, heatmap pixels.

    Returns:
      [B, K, 2, 2] of (x, y), in heatmap pixels squared.
    """
    column, row = peak(maps)
    weights = _distribution(maps, kind) * _window(maps, covariance_radius(sigma))
    weights /= jnp.maximum(weights.sum(axis=(1, 2), keepdims=True), _TINY)
    x = (jnp.arange(maps.shape[2])[:, None] - column[:, None, :]).astype(maps.dtype)  # [B, w, K]
    y = (jnp.arange(maps.shape[1])[:, None] - row[:, None, :]).astype(maps.dtype)  # [B, h, K]
    across, down = weights.sum(axis=1), weights.sum(axis=2)
    mx, my = (across * x).sum(axis=1), (down * y).sum(axis=1)
    xx, yy = (across * x * x).sum(axis=1) - mx**2, (down * y * y).sum(axis=1) - my**2
    xy = jnp.einsum("bhwk,bhk,bwk->bk", weights, y, x) - mx * my
    rows = [jnp.stack([xx, xy], axis=-1), jnp.stack([xy, yy], axis=-1)]
    return jnp.stack(rows, axis=-2)


def covariance_radius(sigma: float) -> int:
    """Returns the half width, in heatmap pixels, of the window that `covariance` looks at."""
    return math.ceil(3 * sigma)


def _distribution(maps, kind):
    if kind == "logits":
        return jax.nn.softmax(maps, axis=(1, 2))
    weights = jnp.maximum(maps, 0.0)
    total = weights.sum(axis=(1, 2), keepdims=True)
    uniform = 1.0 / (maps.shape[1] * maps.shape[2])
    return jnp.where(total > _TINY, weights / jnp.maximum(total, _TINY), uniform)


def _window(maps, radius):
    """Marks the square of half width `radius` round each peak, [B, h, w, K]."""
    column, row = peak(maps)
    near_x = jnp.abs(jnp.arange(maps.shape[2])[:, None] - column[:, None, :]) <= radius  # [B, w, K]
    near_y = jnp.abs(jnp.arange(maps.shape[1])[:, None] - row[:, None, :]) <= radius  # [B, h, K]
    return (near_y[:, :, None, :] & near_x[:, None, :, :]).astype(maps.dtype)


def _centre_of_mass(weights):
    total = jnp.maximum(weights.sum(axis=(1, 2)), _TINY)
    x = jnp.einsum("bhwk,w->bk", weights, jnp.arange(weights.shape[2], dtype=weights.dtype))
    y = jnp.einsum("bhwk,h->bk", weights, jnp.arange(weights.shape[1], dtype=weights.dtype))
    return jnp.stack([x / total, y / total], axis=-1)


DECODERS = {
    "argmax": Decoder(argmax, reads=("peak", "logits"), has_gradient=False),
    "soft_argmax": Decoder(soft_argmax, reads=("logits",)),
    "local_soft_argmax": Decoder(local_soft_argmax, reads=("peak", "logits")),
    "dark": Decoder(dark, reads=("peak", "logits")),
    "coordinates": Decoder(coordinates, reads=("coordinates",)),
}

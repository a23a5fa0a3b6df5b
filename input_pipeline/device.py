"""The pixel work of augmentation in JAX, inside the jitted step: `augment.where='device'`.

The same numbers move and recolour the pixels as in `augment`, to the rounding of interpolation;
what is left for the host is to read a picture, and to average it where it shrinks a lot.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from heatmap import geometry
from heatmap.colour import GREY
from heatmap.config import AugmentConfig, Config


def render(
    batch: Mapping[str, jax.Array], resident: Mapping[str, jax.Array], config: Config
) -> jax.Array:
    """Makes the network's input of what the host has sent.

    Args:
      batch: `transform` [B, 8] and `colour` [B, 4], from `augment`; and either `source` uint8
        [B, H, W, C], of which `source_size` [B, 2] pixels are a picture, or `picture` [B], which
        of the resident ones, with its area `factors` [B, 2].
      resident: from `resident.place`, or empty.
      config: of the run.

    Returns:
      [B, h, w, C] float32, whole numbers in [0, 255].
    """
    if resident:
        whole = resident["pictures"][batch["picture"]], resident["sizes"][batch["picture"]]
        factors = batch["factors"]
        shrinks = jnp.max(factors) > 1
        source, size = lax.cond(shrinks, lambda: area_average(*whole, factors), lambda: whole)
    else:
        source, size = batch["source"], batch["source_size"]
    image = warp(source, size, batch["transform"], config.data.image_size)
    return jnp.round(jitter(image, batch["colour"], config.augment))


def area_average(source, size, factors) -> tuple[jax.Array, jax.Array]:
    """Averages blocks of pixels as `augment.area_average`; the last ones repeat the border.

    Sums of a block are differences of running sums, in whole numbers: exact, also where those
    overflow, because the differences are taken modulo 2³² as well.

    Args:
      source: uint8 [B, H, W, C]; each holds a picture in its upper left corner.
      size: [B, 2] int32, (height, width) of that picture.
      factors: [B, 2] int32, (down, across).

    Returns:
      (uint8 [B, H, W, C], of which [B, 2] int32 pixels are the averaged picture).
    """

    def one(picture, size, factors):
        sums = _block_sums(picture.astype(jnp.uint32), size[0], factors[0])
        sums = _block_sums(sums.swapaxes(0, 1), size[1], factors[1]).swapaxes(0, 1)
        mean = sums.astype(jnp.float32) / (factors[0] * factors[1]).astype(jnp.float32)
        return jnp.round(mean).astype(jnp.uint8), -(-size // factors)

    return jax.vmap(one)(source, size, factors)


def _block_sums(lines, count, factor) -> jax.Array:
    """Sums each `factor` lines of [n, m, C], of which `count` are real and the last is repeated."""
    running = jnp.concatenate([jnp.zeros_like(lines[:1]), jnp.cumsum(lines, axis=0)])
    last = lines[count - 1]

    def up_to(end):  # sums of all lines before it, the last one as often as they lack
        beyond = jnp.maximum(end - count, 0).astype(lines.dtype)
        return running[jnp.minimum(end, count)] + beyond[:, None, None] * last

    ends = factor * (jnp.arange(lines.shape[0]) + 1)
    return up_to(ends) - up_to(ends - factor)


def warp(source, size, transform, input_size: geometry.Size) -> jax.Array:
    """Resamples pictures bilinearly, repeating the nearest pixel beyond the border.

    Args:
      source: [B, H, W, C]; each holds a picture in its upper left corner.
      size: [B, 2] int32, (height, width) of that picture.
      transform: [B, 8] from `augment.warp_parameters`.
      input_size: (height, width) of the result.

    Returns:
      [B, h, w, C] float32.
    """
    y, x = jnp.mgrid[: input_size[0], : input_size[1]].astype(jnp.float32)
    a, b, c, d, e, f, g, h = (v[:, None, None] for v in transform.T)
    depth = g * x + h * y + 1
    rows, columns = size[:, 0, None, None], size[:, 1, None, None]
    across = jnp.clip((a * x + b * y + c) / depth, 0, columns - 1)  # [B, h, w], as the next
    down = jnp.clip((d * x + e * y + f) / depth, 0, rows - 1)
    left, top = jnp.floor(across), jnp.floor(down)
    right, bottom = jnp.minimum(left + 1, columns - 1), jnp.minimum(top + 1, rows - 1)
    to_right, to_bottom = (across - left)[..., None], (down - top)[..., None]

    def between(row):  # the columns on either side
        return (1 - to_right) * _read(source, row, left) + to_right * _read(source, row, right)

    return (1 - to_bottom) * between(top) + to_bottom * between(bottom)


def _read(source, row, column) -> jax.Array:
    """Returns the pixels [B, h, w, C] at whole rows and columns [B, h, w]."""
    batch = jnp.arange(len(source))[:, None, None]
    found = source[batch, row.astype(jnp.int32), column.astype(jnp.int32)]
    return found.astype(jnp.float32)


def jitter(image, colour, config: AugmentConfig) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, as `augment.jitter`.

    Args:
      image: [B, h, w, C] float32 in [0, 255].
      colour: [B, 4].
      config: settings of zero cost nothing.

    Returns:
      [B, h, w, C] float32 in [0, 255].
    """
    brightness, contrast, saturation, hue = (v[:, None, None, None] for v in colour.T)
    coloured = image.shape[-1] == 3

    def blend(first, second, share):
        return jnp.clip(share * first + (1 - share) * second, 0.0, 255.0)

    def grey(image):
        return (image * jnp.array(GREY)).sum(-1, keepdims=True) if coloured else image

    if config.brightness:
        image = jnp.clip(image * brightness, 0.0, 255.0)
    if config.contrast:
        image = blend(image, grey(image).mean((1, 2, 3), keepdims=True), contrast)
    if config.saturation and coloured:
        image = blend(image, grey(image), saturation)
    if config.hue and coloured:
        image = turn_hue(image, hue)
    return image


def turn_hue(image, turn) -> jax.Array:
    """Shifts the hue of RGB pixels [..., 3] by so many turns of the colour wheel.

    Value and chroma stay; the hue is the place on the hexagon of Smith (SIGGRAPH 1978).
    """
    value = image.max(-1, keepdims=True)
    chroma = value - image.min(-1, keepdims=True)
    red, green, blue = jnp.split(image, 3, axis=-1)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sixths + 6 * turn
    # How far each channel is below the value, by its distance on the wheel.
    offsets = jnp.array([5.0, 3.0, 1.0])
    place = jnp.mod(offsets + turned, 6.0)
    return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0.0, 1.0)

"""The evaluation resampler in JAX for a picture of a size that is known only when it is there.

`input_pipeline.device` resamples batches inside the training step, where every picture lies in a
frame of one size. Here the frame is the picture, and its height and width may be symbols.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from heatmap.axes import Axis
from heatmap.geometry import Size

# What tf.image.rgb_to_grayscale multiplies by, which is what `input_pipeline.pictures` reads by.
GREY = (0.2989, 0.5870, 0.1140)


class Neighbours(NamedTuple):
    """Between which averaged pixels each input pixel of an axis lies.

    Attributes:
      before: [n] int32.
      after: [n] int32.
      share: [n] of `after`, float32.
    """

    before: jax.Array
    after: jax.Array
    share: jax.Array


def grey(image) -> jax.Array:
    """Turns uint8 [H, W, 3] into whole numbers [H, W, 1], as tf.image.rgb_to_grayscale does."""
    shares = _rounded(image.astype(jnp.float32) * (1 / 255))
    red, green, blue = jnp.split(_rounded(shares * jnp.array(GREY, jnp.float32)), 3, axis=-1)
    return jnp.floor((red + green + blue) * 255.5).astype(jnp.int32)


def resample(image, down: Axis, across: Axis, size: Size) -> jax.Array:
    """Reads a picture at the pixels of the input: an area average where it shrinks, then bilinear.

    Args:
      image: [H, W, C], whole numbers.
      down: how the rows are read.
      across: how the columns are read.
      size: (height, width) of the input.

    Returns:
      [h, w, C] float32, whole numbers.
    """
    rows = neighbours(down, image.shape[0], size[0])
    columns = neighbours(across, image.shape[1], size[1])
    sums = _block_sums(image, down, rows)  # [2h, W, C], first all before, then all after
    sums = _block_sums(sums.swapaxes(0, 1), across, columns).swapaxes(0, 1)  # [2h, 2w, C]
    area = (down.factor * across.factor).astype(jnp.float32)
    means = sums.astype(jnp.float32) * (1.0 / area)
    between = _blend(means[:, : size[1]], means[:, size[1] :], columns.share[None, :, None])
    return jnp.round(_blend(between[: size[0]], between[size[0] :], rows.share[:, None, None]))


def _blend(first, second, share) -> jax.Array:
    return _rounded((1 - share) * first) + _rounded(share * second)


def _rounded(product) -> jax.Array:
    """Keeps a product, which is not negative, from being fused with the sum that it goes into.

    TensorFlow rounds both. Half of all grey values between two pixels lie halfway between whole
    numbers in some ratios, and the last bit decides which way these go.
    """
    return jnp.maximum(product, 0.0)


def neighbours(axis: Axis, size, count: int) -> Neighbours:
    """Finds the two averaged pixels that each input pixel is between, the border repeated.

    Args:
      axis: how it is read.
      size: original pixels of the axis.
      count: input pixels of the axis.
    """
    factor = axis.factor.astype(jnp.int32)
    last = (size + factor - 1) // factor - 1
    place = _rounded(axis.step * jnp.arange(count, dtype=jnp.float32)) + axis.start
    place = jnp.clip(place, 0.0, last.astype(jnp.float32))
    before = jnp.floor(place)
    whole = before.astype(jnp.int32)
    return Neighbours(whole, jnp.minimum(whole + 1, last), place - before)


def _block_sums(lines, axis: Axis, wanted: Neighbours) -> jax.Array:
    """Sums the lines of the wanted blocks, the last line repeated where a block lacks some.

    Args:
      lines: [n, m, C], whole numbers.
      axis: with the size of a block.
      wanted: q blocks before and q after.

    Returns:
      [2q, m, C] int32, exact.
    """
    factor = axis.factor.astype(jnp.int32)
    first = jnp.concatenate([wanted.before, wanted.after]) * factor
    last = lines.shape[0] - 1

    def add(i, total):
        return total + lines[jnp.minimum(first + i, last)].astype(jnp.int32)

    return lax.fori_loop(0, factor, add, jnp.zeros((len(first), *lines.shape[1:]), jnp.int32))

"""The first stage of the encoder as one operator: convolution, batch norm, ReLU and max-pool.

Its result before the pool is the network's largest array, and with one or three channels to start
from next to no work: on a CPU its time is that of writing and reading that array. Here the array is
never made. The batch's own mean and variance follow from the moments of the input's 3×3
neighbourhoods; the pool compares four convolutions that exist in registers only; and going back,
those of one picture at a time are computed anew.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from heatmap.models import norm, ops
from heatmap.models.norm import NormRelu

_MOST_CHANNELS = 4  # with more, the convolution is worth its own operator


def apply(conv: ops.Conv, after: NormRelu, x):
    """Maps pictures to the first features, as `after.after(conv, x)` with a pool.

    Args:
      conv: the convolution.
      after: the normalisation, with the pool.
      x: [B, H, W, C], H and W even.

    Returns:
      [B, H/2, W/2, F].
    """
    if x.shape[-1] > _MOST_CHANNELS:
        return after.after(conv, x)
    assert conv.bias is not None  # both are made by their constructors
    assert after.scale is not None
    assert after.bias is not None
    dtype = conv.dtype or x.dtype
    x, kernel = x.astype(dtype), conv.kernel[...].astype(dtype)
    if after.use_running_average:
        factor, offset = after.stored(conv.bias[...])
        selected = lax.platform_dependent(
            x, kernel, factor, cpu=largest_of_conv, default=_largest_of_plain_conv
        )
        return nnx.relu(selected * factor + offset).astype(dtype)
    y, mean, var = conv_norm_relu_pool(x, kernel, after.scale[...], after.bias[...])
    after.remember(mean + conv.bias[...], var)
    return y


@jax.custom_vjp
def conv_norm_relu_pool(x, kernel, scale, bias):
    """Computes `max_pool(relu(batch_norm(conv(x))))` with the batch's own statistics.

    Args:
      x: [B, H, W, C], H and W even.
      kernel: [3, 3, C, F].
      scale: [F].
      bias: [F].

    Returns:
      (y [B, H/2, W/2, F], mean [F], variance [F]) of the convolution; mean and variance are float32
      or wider and carry no gradient.
    """
    return _forward(x, kernel, scale, bias)[0]


def plain_conv_norm_relu_pool(x, kernel, scale, bias):
    """The reference form of `conv_norm_relu_pool`, of the operators that it joins."""
    return norm.norm_relu(ops.conv_3x3(x, kernel), scale, bias, True)


def _forward(x, kernel, scale, bias):
    # The plain form keeps its convolution for the way back. The other has none to keep: its zeros
    # are read by nobody, so no program makes them.
    def without(x, kernel, scale):
        first, second = _moments(x)
        mean, var = _statistics(first, second, kernel)
        nothing = jnp.zeros((*x.shape[:3], kernel.shape[-1]), x.dtype)
        # Picture by picture, or each loop that reads the result would compute it again.
        largest = ops.map_images(largest_of_conv, (x,), (kernel, scale))
        return nothing, mean, var, largest

    def plain(x, kernel, scale):
        conv = ops.plain_conv(x, kernel)
        return conv, *norm.statistics(conv), norm.largest_after(conv, scale)

    conv, mean, var, selected = lax.platform_dependent(x, kernel, scale, cpu=without, default=plain)
    y, factor, offset, inverse = norm.normalise(selected, mean, var, scale, bias)
    return (y, mean, var), (x, kernel, conv, selected, factor, offset, mean, inverse)


def _backward(residuals, gradients):
    x, kernel, conv, selected, factor, offset, mean, inverse = residuals
    gradient, dscale, dbias = norm.through_relu(
        selected, factor, offset, mean, inverse, gradients[0]
    )
    of_norm = (factor, mean, inverse, gradient, dscale, dbias)

    def plain(x, kernel, conv, selected, of_norm):
        dconv = norm.through_statistics(True, conv, selected, *of_norm)
        return jax.vjp(ops.plain_conv, x, kernel)[1](dconv)

    def without(x, kernel, conv, selected, of_norm):
        del conv, selected
        # No step asks for the gradient of its pictures, so that it is not computed then.
        conv = ops.plain_conv(x, kernel)
        dconv = norm.through_statistics(True, conv, norm.largest_after(conv, factor), *of_norm)
        dkernel = _kernel_gradient(x, kernel, *of_norm)
        return ops.conv_input_gradient(dconv, kernel), dkernel.astype(kernel.dtype)

    arguments = (x, kernel, conv, selected, of_norm)
    dx, dkernel = lax.platform_dependent(*arguments, cpu=without, default=plain)
    return dx, dkernel, dscale, dbias


conv_norm_relu_pool.defvjp(_forward, _backward)


def largest_of_conv(x, kernel, factor):
    """Convolves, and picks of each 2×2 block what is largest once multiplied by a factor.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, F].
      factor: [F], of which the sign counts.

    Returns:
      [B, H/2, W/2, F].
    """
    sign, views = jnp.where(factor >= 0, 1, -1), _views(x)
    signed = kernel.astype(views[0][0].dtype) * sign

    def conv(p, q):  # at the pixel (p, q) of each block
        taps = ((a, b, c) for a in range(3) for b in range(3) for c in range(x.shape[-1]))
        return sum(views[p + a][q + b][..., c, None] * signed[a, b, c] for a, b, c in taps)

    blocks = [conv(p, q) for p in (0, 1) for q in (0, 1)]
    return (functools.reduce(jnp.maximum, blocks) * sign).astype(x.dtype)


def _largest_of_plain_conv(x, kernel, factor):
    return norm.largest_after(ops.plain_conv(x, kernel), factor)


def _views(x):
    """Returns the 4×4 pixels that a 2×2 block's convolutions see: [u][v] -> [B, H/2, W/2, C].

    They are float32 or wider: what is computed of them stays in registers, where XLA:CPU would
    convert bfloat16 for each single operation.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x.astype(ops.accumulator(x.dtype)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[padded[:, u : u + height : 2, v : v + width : 2] for v in range(4)] for u in range(4)]


def _windows(x):
    """Returns the same side by side, [B, H/2, W/2, 2·2·2·2·C]: by block, then by pixel in it.

    So they are four copies of blocks, whose pixels lie together; from single pixels, XLA:CPU takes
    four times as long.
    """
    batch, height, width, channels = x.shape
    padded = jnp.pad(x.astype(ops.accumulator(x.dtype)), ((0, 0), (1, 1), (1, 1), (0, 0)))
    blocks = ops.blocks_of(padded).transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(batch, height // 2 + 1, width // 2 + 1, 4 * channels)
    shifted = [blocks[:, p : p + height // 2, q : q + width // 2] for p, q in _PIXELS]
    return jnp.concatenate(shifted, axis=-1)


def _by_rows(of_windows, channels: int):
    """Orders what belongs to the pixels of windows, [16·C, …], as rows of them, [4, 4, C, …]."""
    others = of_windows.shape[1:]
    by_block = of_windows.reshape(2, 2, 2, 2, channels, *others)
    return by_block.swapaxes(1, 2).reshape(4, 4, channels, *others)


def _by_blocks(of_windows):
    """Orders [4, 4, C, …] as the windows are, [16·C, …]."""
    others = of_windows.shape[2:]
    by_row = of_windows.reshape(2, 2, 2, 2, *others)
    return by_row.swapaxes(1, 2).reshape(-1, *others[1:])


def _taps_of_windows(of_windows, pixel):
    """Cuts what belongs to the 3×3 neighbourhood of a block's pixel (p, q) out of [4, 4, …]."""
    p, q = pixel
    return of_windows[p : p + 3, q : q + 3]


_PIXELS = ((0, 0), (0, 1), (1, 0), (1, 1))


def _moments(x):
    """Returns mean [9 C] and second moments [9 C, 9 C] of all 3×3 neighbourhoods of the batch."""
    channels, size = x.shape[-1], 9 * x.shape[-1]
    wide = _windows(x)
    count = x.size // channels
    first = _by_rows(wide.sum((0, 1, 2)), channels) / count
    second = ops.sum_over_images(lambda wide: ops.per_pixel(wide, wide), (wide,)) / count
    second = _by_rows(second, channels)  # [4, 4, C, 16 C']
    first = sum(_taps_of_windows(first, pixel).reshape(size) for pixel in _PIXELS)
    rows = (
        _by_rows(_taps_of_windows(second, pixel).reshape(size, -1).T, channels) for pixel in _PIXELS
    )  # [4', 4', C', 9 C] each
    both = (_taps_of_windows(a, pixel) for a, pixel in zip(rows, _PIXELS, strict=True))
    second = sum(a.reshape(size, size).T for a in both)
    return first, second


def _statistics(first, second, kernel):
    """Returns the mean and variance [F] of the convolution."""
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(first.dtype)
    mean = first @ matrix
    square = (matrix * (second @ matrix)).sum(0)
    return mean, jnp.maximum(square - mean * mean, 0.0)


def _kernel_gradient(x, kernel, factor, mean, inverse, gradient, dscale, dbias):
    """Sums neighbourhood ⊗ gradient of the convolution over pixels, without making either.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, F].
      factor: [F], of the normalisation.
      mean: [F].
      inverse: [F].
      gradient: [B, H/2, W/2, F], of the normalised values that the pool has chosen.
      dscale: [F].
      dbias: [F].

    Returns:
      [3, 3, C, F], float32 or wider.
    """
    channels, features = kernel.shape[2:]
    sign = jnp.where(factor >= 0, 1, -1)
    spread_kernel = jnp.zeros((4, 4, channels, 2, 2, features), ops.accumulator(x.dtype))
    for p, q in _PIXELS:
        spread_kernel = spread_kernel.at[p : p + 3, q : q + 3, :, p, q].set(kernel * sign)
    spread_kernel = _by_blocks(spread_kernel).reshape(16 * channels, -1)

    def term(windows, gradient, spread_kernel):
        rows = windows.reshape(-1, 16 * channels)
        blocks = jnp.split(rows @ spread_kernel, 4, axis=-1)
        largest = functools.reduce(jnp.maximum, blocks)
        first = ops.first_true([block == largest for block in blocks])
        gradient = gradient.reshape(-1, features)
        parts = [jnp.where(first == place, gradient, 0) for place in range(4)]
        columns = jnp.concatenate(parts, axis=-1)
        return ops.per_pixel(rows, columns)

    chosen = ops.sum_over_images(term, (_windows(x), gradient), (spread_kernel,))
    chosen = _by_rows(chosen, channels).reshape(4, 4, channels, 2, 2, features)
    chosen = sum(_taps_of_windows(chosen[..., p, q, :], (p, q)) for p, q in _PIXELS)
    first, second = _moments(x)
    matrix = kernel.reshape(-1, features).astype(first.dtype)
    # What all values owe the mean and the variance that they have made.
    implied = first[:, None] * dbias
    implied += (second @ matrix - first[:, None] * mean) * (inverse * dscale)
    return factor * (chosen - implied.reshape(chosen.shape))

"""Convolutions in bfloat16 on a CPU, by the one operation that XLA gives to its matrix unit.

XLA:CPU hands a product of bfloat16 matrices, [M, K] · [K, N] in float32, to kernels that use AMX or
AVX-512's bfloat16 where there are any. All else it computes in float32, with conversions before and
after: convolutions, products whose result is bfloat16 or whose first factor is transposed, and even
what only moves numbers, `pad` and `concatenate`. Hence the sums of products here, whose factors are
laid out as 16-bit integers.
"""

import functools

import jax.numpy as jnp
from jax import lax


def bits(x):
    """Returns bfloat16 numbers as the uint16 that they are stored as."""
    return lax.bitcast_convert_type(x, jnp.uint16)


def product(a, b):
    """Multiplies matrices [M, K] and [K, N], both as `bits`, to [M, N] in float32."""
    a, b = (lax.bitcast_convert_type(factor, jnp.bfloat16) for factor in (a, b))
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def conv(x, kernel, padding):
    """Convolution of stride 1, as `lax.conv_general_dilated` of NHWC and HWIO.

    One product gives what each pixel adds through each column of the kernel; these are then shifted
    and added. Only rows are laid side by side before it, in a third of the memory of im2col.

    Args:
      x: [B, H, W, C], bfloat16.
      kernel: [h, w, C, F], bfloat16.
      padding: ((above, below), (left, right)).

    Returns:
      [B, H', W', F], bfloat16, added up in float32.
    """
    return _conv_of_bits(jnp.pad(bits(x), ((0, 0), *padding, (0, 0))), bits(kernel))


def conv_4x4_stride_2(x, kernel):
    """Convolution of stride 2 that halves [B, 2H, 2W, C] by [4, 4, C, F] to [B, H, W, F].

    Blocks of 2×2 pixels become channels, after which it is one of stride 1 and 2×2 taps.
    """
    channels, features = kernel.shape[2:]
    padded = jnp.pad(bits(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    batch, height, width = padded.shape[:3]
    blocks = padded.reshape(batch, height // 2, 2, width // 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    blocks = blocks.reshape(batch, height // 2, width // 2, 4 * channels)
    taps = bits(kernel).reshape(2, 2, 2, 2, channels, features).transpose(0, 2, 1, 3, 4, 5)
    return _conv_of_bits(blocks, taps.reshape(2, 2, 4 * channels, features))


def _conv_of_bits(x, kernel):
    height, width, channels, features = kernel.shape
    rows, columns = x.shape[1] - height + 1, x.shape[2] - width + 1
    stacked = jnp.concatenate([x[:, p : p + rows] for p in range(height)], axis=-1)
    taps = kernel.swapaxes(1, 2).reshape(height * channels, width * features)
    added = product(stacked.reshape(-1, height * channels), taps)
    added = added.reshape(-1, rows, x.shape[2], width, features)
    shifted = [added[:, :, q : q + columns, q] for q in range(width)]
    return functools.reduce(jnp.add, shifted).astype(jnp.bfloat16)

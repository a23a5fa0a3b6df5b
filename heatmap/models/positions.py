"""Where a patch is: rotations of queries and keys (DINOv3), or learned vectors (DINOv2)."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

_ROPE_BASE = 100.0  # the longest period, in half pictures


@functools.lru_cache(maxsize=32)
def rope(grid: tuple[int, int], prefix: int, head_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the angles of axial rotary positions (Su et al., 2021; Siméoni et al., 2025).

    Args:
      grid: (rows, columns) of patches.
      prefix: number of tokens before the patches, which have no place and are not turned.
      head_width: channels of an attention head, a multiple of 4.

    Returns:
      (cosines, sines), each [prefix + rows * columns, head_width], float32.
    """
    # Rounded to float32 once, at the end: coarser angles would be off by pixels at a period's end.
    periods = _ROPE_BASE ** (np.arange(head_width // 4) / (head_width // 4))
    centres = [2 * (np.arange(n) + 0.5) / n - 1 for n in grid]  # each axis from -1 to 1
    y, x = np.meshgrid(*centres, indexing="ij")
    angles = 2 * np.pi * np.stack([y.ravel(), x.ravel()], axis=1)[:, :, None] / periods
    angles = np.tile(angles.reshape(-1, head_width // 2), 2)
    angles = np.concatenate([np.zeros((prefix, head_width)), angles])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x, cosines, sines):
    """Turns each pair of channels (i, i + D/2) by its angle, in float32 whatever the input.

    Args:
      x: [B, N, heads, D].
      cosines: [N, D].
      sines: [N, D].

    Returns:
      Like x.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    quarter_turn = jnp.concatenate([-second, first], axis=-1)
    turned = jnp.concatenate([first, second], axis=-1) * cosines[:, None]
    return (turned + quarter_turn * sines[:, None]).astype(x.dtype)


def resize(table, grid: tuple[int, int], antialias: bool):
    """Interpolates a square table of vectors bicubically, as PyTorch's `interpolate` does.

    Args:
      table: [side, side, C].
      grid: (rows, columns) wanted.
      antialias: widen the kernel where the table shrinks, as DINOv2 with registers does.

    Returns:
      [rows, columns, C].
    """
    rows, columns = (cubic_weights(table.shape[0], n, antialias) for n in grid)
    return jnp.einsum("ai,bj,ijc->abc", rows, columns, table, precision=lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=32)
def cubic_weights(size: int, wanted: int, antialias: bool) -> np.ndarray:
    """Returns the matrix [wanted, size] of bicubic interpolation between pixel centres.

    The kernel is that of Keys (1981), with PyTorch's two choices of its parameter: -0.75 and
    repeated border values as they are, -0.5 and weights that sum to one when antialiased.
    """
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    if antialias:
        distances = (np.arange(size) - centres[:, None]) / max(scale, 1.0)
        weights = _cubic(distances, -0.5)
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        first = np.floor(centres).astype(int)
        weights = np.zeros((wanted, size))
        for tap in (-1, 0, 1, 2):
            index = first + tap
            at = (np.arange(wanted), index.clip(0, size - 1))
            np.add.at(weights, at, _cubic(centres - index, -0.75))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

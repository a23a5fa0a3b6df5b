"""Normalisation, ReLU and, after batch norm, an optional 2×2 max-pool as one operator.

Written apart, they pass over the largest arrays of the network many times, and on a CPU those
passes cost as much as a convolution. Together they read the input twice going forward: for sums of
each channel, then to multiply and add. Batch norm is also read only once going back, and is
monotone in each channel, so the pool can come first and all that follows has a quarter of the
pixels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from heatmap.models import ops

_EPSILON = 1e-5


class NormRelu(nnx.BatchNorm):
    """`max_pool(relu(batch_norm(x)))`, with the parameters and statistics of `nnx.BatchNorm`.

    PyTorch's momentum of 0.1 is 0.9 here; the running variance is the biased one, as in Flax.
    """

    def __init__(self, features: int, *, pool: bool = False, dtype, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.pool = pool

    def __call__(self, x, shift=0.0):
        """Maps [B, H, W, C] to the same shape, or [B, H/2, W/2, C] with the pool.

        Args:
          x: what is to be normalised.
          shift: [C], the bias that x lacks. The batch's own mean would take it away again: to add
            it before is a pass over the largest arrays for nothing but the running mean.
        """
        assert self.scale is not None  # both are made by the constructor above
        assert self.bias is not None
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            factor, offset = self.stored(shift)
            y = nnx.relu(x * factor + offset).astype(x.dtype)
            return ops.max_pool_2x2(y) if self.pool else y
        y, mean, var = norm_relu(x, scale, bias, self.pool)
        self.remember(mean + shift, var)
        return y

    def stored(self, shift):
        """Returns (factor, offset) [C], by the running statistics, of what lacks a bias `shift`."""
        assert self.scale is not None  # both are made by the constructor above
        assert self.bias is not None
        factor = self.scale[...] * lax.rsqrt(self.var[...] + _EPSILON)
        return factor, self.bias[...] + (shift - self.mean[...]) * factor

    def remember(self, mean, var):
        """Moves the running statistics towards a batch's [C]."""
        for stored, now in ((self.mean, mean), (self.var, var)):
            stored[...] = self.momentum * stored[...] + (1 - self.momentum) * now

    def after(self, layer: ops.Conv | ops.ConvTranspose, x):
        """Maps what a layer is given to its normalised result."""
        assert layer.bias is not None  # made by its constructor
        return self(layer(x, biased=False), layer.bias[...])


class GroupNormRelu(nnx.GroupNorm):
    """`relu(group_norm(x))` over 32 groups of channels (Wu and He, ECCV 2018).

    Parameters are those of `nnx.GroupNorm`, the epsilon is PyTorch's.
    """

    def __init__(self, features: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(features, num_groups=32, epsilon=_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        """Maps [B, H, W, C] to the same shape."""
        assert self.scale is not None  # both are made by the constructor above
        assert self.bias is not None
        wide = x.astype(jnp.float32)
        mean = self._over_groups(wide.mean((1, 2)))
        square = self._over_groups((wide * wide).mean((1, 2)))
        factor = self.scale[...] * lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + _EPSILON)
        offset = self.bias[...] - mean * factor  # [B, C], as all of these
        return nnx.relu(wide * factor[:, None, None] + offset[:, None, None]).astype(x.dtype)

    def _over_groups(self, means):
        """Averages [B, C] over the channels of each group and gives each channel its group's."""
        groups = means.reshape(means.shape[0], self.num_groups, -1)
        return jnp.broadcast_to(groups.mean(-1, keepdims=True), groups.shape).reshape(means.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def norm_relu(x, scale, bias, pool):
    """Normalises by the batch's own statistics (Ioffe and Szegedy, ICML 2015), then ReLU and pool.

    Args:
      x: [B, H, W, C].
      scale: [C].
      bias: [C].
      pool: whether to end with a 2×2 max-pool.

    Returns:
      (y, mean [C], variance [C]); mean and variance are float32 or wider and carry
      no gradient.
    """
    return _forward(x, scale, bias, pool)[0]


def _forward(x, scale, bias, pool):
    mean, var = statistics(x)
    selected = largest_after(x, scale) if pool else x
    y, factor, offset, inverse = normalise(selected, mean, var, scale, bias)
    return (y, mean, var), (x, selected, factor, offset, mean, inverse)


def statistics(x):
    """Returns mean and variance [C] of [B, H, W, C], float32 or wider."""
    wide = x.astype(ops.accumulator(x.dtype))
    mean = wide.mean((0, 1, 2))
    return mean, jnp.maximum((wide * wide).mean((0, 1, 2)) - mean * mean, 0.0)


def largest_after(x, factor):
    """Picks the pixel of each 2×2 block that is largest once multiplied by a channel's factor."""
    blocks = ops.quarters(x)
    largest, smallest = (functools.reduce(f, blocks) for f in (jnp.maximum, jnp.minimum))
    return jnp.where(factor >= 0, largest, smallest)


def normalise(selected, mean, var, scale, bias):
    """Normalises, then ReLU.

    Args:
      selected: [B, H, W, C], all values, or those that the pool has chosen.
      mean: [C], of all values.
      var: [C].
      scale: [C].
      bias: [C].

    Returns:
      (y, factor [C], offset [C], inverse [C]): y = relu(selected · factor + offset), and the
      inverse of the standard deviation.
    """
    inverse = lax.rsqrt(var + _EPSILON)
    factor = scale * inverse
    offset = bias - mean * factor
    y = nnx.relu(selected * factor + offset).astype(selected.dtype)
    return y, factor, offset, inverse


def _backward(pool, residuals, gradients):
    x, selected, factor, offset, mean, inverse = residuals
    gradient, dscale, dbias = through_relu(selected, factor, offset, mean, inverse, gradients[0])
    dx = through_statistics(pool, x, selected, factor, mean, inverse, gradient, dscale, dbias)
    return dx, dscale, dbias


def through_relu(selected, factor, offset, mean, inverse, gradient):
    """Returns the gradients of the selected values, normalised, of scale and of bias."""
    gradient = jnp.where(selected * factor + offset > 0, gradient.astype(factor.dtype), 0.0)
    dscale = (gradient * ((selected - mean) * inverse)).sum((0, 1, 2))
    return gradient, dscale, gradient.sum((0, 1, 2))


def through_statistics(pool, x, selected, factor, mean, inverse, gradient, dscale, dbias):
    """Returns the gradient of x, of which all values have made the mean and the variance."""
    count, shape = x.size // x.shape[-1], x.shape
    spread = gradient
    if pool:
        x = ops.blocks_of(x)
        spread = ops.to_first_equal(x, selected, gradient)
    shared = dbias / count + (x - mean) * (inverse * dscale / count)
    return (factor * (spread - shared)).astype(x.dtype).reshape(shape)


norm_relu.defvjp(_forward, _backward)

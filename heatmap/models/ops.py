"""Operators whose gradients XLA:CPU computes slowly, with gradients written by hand.

On CPU, XLA lowers the weight gradient of a convolution to one with a huge window, that of a
transposed convolution to a dilated one, and the gradient of a max-pool to select-and-scatter; all
three leave the fast matrix multiplication. The forms here are the same functions with the same
parameters, for bfloat16 in forms of their own (`heatmap/models/bf16.py`). Accelerators keep the
plain operators: `jax.lax.platform_dependent` chooses when the program is lowered.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from heatmap.models import bf16

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Below this many pixels the plain forward operator is as fast as the rearranged one.
_PLAIN_FORWARD_PIXELS = 8 * 8


def accumulator(dtype):
    """The precision of sums and of what a network returns: float32, or wider if `dtype` is."""
    return jnp.promote_types(dtype, jnp.float32)


class ConvTranspose(nnx.ConvTranspose):
    """A 4×4 transposed convolution of stride 2 that doubles height and width.

    Parameters, initialisers and result are those of `nnx.ConvTranspose` with 'SAME' padding, which
    for this kernel is PyTorch's `ConvTranspose2d(kernel_size=4, stride=2, padding=1)` with the
    kernel mirrored.
    """

    def __init__(self, features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(
            features_in, features_out, (4, 4), strides=2, padding="SAME", dtype=dtype, rngs=rngs
        )

    def __call__(self, inputs, biased: bool = True):
        """Maps [B, H, W, C] to [B, 2H, 2W, features_out], `biased` or still without the bias."""
        return _with_parameters(self, conv_transpose_4x4, inputs, biased)


class Conv(nnx.Conv):
    """A 3×3 convolution that keeps height and width: `nnx.Conv` in parameters and result."""

    def __init__(self, features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(features_in, features_out, (3, 3), dtype=dtype, rngs=rngs)

    def __call__(self, inputs, biased: bool = True):
        """Maps [B, H, W, C] to [B, H, W, features_out], `biased` or still without the bias."""
        return _with_parameters(self, conv_3x3, inputs, biased)


class Linear(nnx.Linear):
    """A matrix product over the last axis: `nnx.Linear` in parameters and result."""

    def __call__(self, inputs):
        """Maps [..., C] to [..., features_out]."""
        return _with_parameters(self, linear, inputs, self.bias is not None)


class Conv1x1(nnx.Conv):
    """A 1×1 convolution: `nnx.Conv` in parameters and result, by a product of matrices.

    Its kernel's gradient is one too; as a convolution, XLA:CPU first transposes the whole input.
    """

    def __init__(self, features_in: int, features_out: int, **settings):
        super().__init__(features_in, features_out, (1, 1), **settings)

    def __call__(self, inputs):
        """Maps [B, H, W, C] to [B, H, W, features_out]."""
        return _with_parameters(
            self, lambda x, kernel: linear(x, kernel[0, 0]), inputs, biased=True
        )


def join_channels(a, b):
    """Puts the channels of [B, H, W, C] and [B, H, W, D] side by side, [B, H, W, C + D].

    XLA:CPU makes one quick loop of two padded arrays, and a slow one of a concatenation.
    """
    ahead, behind = ((*((0, 0),) * 3, width) for width in ((0, b.shape[-1]), (a.shape[-1], 0)))
    return jnp.pad(a, ahead) + jnp.pad(b, behind)


def _with_parameters(layer, operator, inputs, biased: bool):
    """Applies an operator to a layer's kernel and bias, in the layer's precision."""
    dtype = layer.dtype or inputs.dtype
    result = operator(inputs.astype(dtype), layer.kernel[...].astype(dtype))
    return result + layer.bias[...].astype(dtype) if biased else result


@jax.custom_vjp
def linear(x, kernel):
    """Maps [..., C] by [C, F] to [..., F]."""
    if x.dtype != jnp.bfloat16:
        return plain_linear(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_rounded_once, default=plain_linear)


def plain_linear(x, kernel):
    """The reference form of `linear`, differentiable by JAX itself."""
    return x @ kernel


def _rounded_once(x, kernel):
    """Rounds float32 sums to bfloat16: with a result of float32, XLA:CPU has a quick form."""
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _linear_backward(residuals, gradient):
    def plain(x, kernel, gradient):
        return jax.vjp(plain_linear, x, kernel)[1](gradient)

    def narrow_first(x, kernel, gradient):
        dkernel = sum_over_images(per_pixel, (gradient, x)).T
        return gradient @ kernel.T, dkernel.astype(kernel.dtype)

    # Of pictures, the results are the few maps that a network ends with: the gradient of their
    # kernel is the quicker product with the narrower factor first.
    of_pictures = gradient.ndim == 4 and gradient.dtype != jnp.bfloat16
    on_cpu = narrow_first if of_pictures else plain
    return lax.platform_dependent(*residuals, gradient, cpu=on_cpu, default=plain)


linear.defvjp(lambda x, kernel: (linear(x, kernel), (x, kernel)), _linear_backward)


@jax.custom_vjp
def conv_3x3(x, kernel):
    """3×3 convolution of stride 1 and 'SAME' padding.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, F].

    Returns:
      [B, H, W, F].
    """
    if x.dtype != jnp.bfloat16:
        return plain_conv(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=_conv_on_cpu, default=plain_conv)


def _conv_on_cpu(x, kernel, padding=((1, 1), (1, 1))):
    if x.dtype == jnp.bfloat16:
        return bf16.conv(x, kernel, padding)
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


def plain_conv(x, kernel):
    """The reference form of `conv_3x3`, differentiable by JAX itself."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def _conv_backward(residuals, gradient):
    def plain(x, kernel, gradient):
        return jax.vjp(plain_conv, x, kernel)[1](gradient)

    def rearranged(x, kernel, gradient):
        dx = conv_input_gradient(gradient, kernel)
        return dx, _conv_kernel_gradient(x, gradient).astype(kernel.dtype)

    return lax.platform_dependent(*residuals, gradient, cpu=rearranged, default=plain)


conv_3x3.defvjp(lambda x, kernel: (conv_3x3(x, kernel), (x, kernel)), _conv_backward)


def conv_input_gradient(gradient, kernel):
    """Maps the gradient [B, H, W, F] of `conv_3x3`'s result to that of x, on a CPU."""
    return _conv_on_cpu(gradient, kernel[::-1, ::-1].swapaxes(2, 3))


def _conv_kernel_gradient(x, gradient):
    """Sums, over pixels i, x[i + t - 1] ⊗ gradient[i] for each of the 3×3 taps t.

    The shifted copies of x lie one after the other, channels first: long stretches of memory are
    moved, and neither factor of the product has to be transposed. Columns are shifted in x too, and
    the gradient is read as it is; in bfloat16 they are shifted in the gradient, the other way.
    """
    (width, channels), features = x.shape[2:], gradient.shape[-1]

    def rows(padded):  # [C, W (H + 2)] -> [3 C, W H]
        pixels = padded.shape[1] - 2 * width
        return jnp.concatenate([padded[:, p * width :][:, :pixels] for p in range(3)])

    def above_and_below(x):  # [C, H W] -> [3 C, H W]
        return rows(jnp.pad(x, ((0, 0), (width, width))))

    def columns(gradient):  # [1, H, W, F] -> [1, H, W, 3 F]
        padded = jnp.pad(gradient, ((0, 0), (0, 0), (1, 1), (0, 0)))
        return jnp.concatenate([padded[:, :, q : q + width] for q in (2, 1, 0)], axis=-1)

    def around(x):  # [C, H W] -> [9 C, H W]
        padded = jnp.pad(x, ((0, 0), (width + 1, width + 1)))
        column = np.arange(padded.shape[1] - 2) % width
        left = jnp.where(column > 0, padded[:, :-2], 0)  # of the first, the row above has an end
        right = jnp.where(column < width - 1, padded[:, 2:], 0)
        return rows(jnp.concatenate([left, padded[:, 1:-1], right]))

    def term(x, gradient):
        return around(x.reshape(-1, channels).T) @ gradient.reshape(-1, features)

    if x.dtype == jnp.bfloat16:
        product = _sum_in_bfloat16(x, gradient, above_and_below, columns)
        return product.reshape(3, channels, 3, features).swapaxes(1, 2)
    return sum_over_images(term, (x, gradient)).reshape(3, 3, channels, features)


@jax.custom_vjp
def conv_transpose_4x4(x, kernel):
    """Transposed convolution, 4×4, stride 2, as `lax.conv_transpose(…, 'SAME')`.

    Args:
      x: [B, H, W, C].
      kernel: [4, 4, C, F].

    Returns:
      [B, 2H, 2W, F].
    """
    return lax.platform_dependent(
        x, kernel, cpu=_conv_transpose_by_phases, default=plain_conv_transpose
    )


def plain_conv_transpose(x, kernel):
    """The reference form of `conv_transpose_4x4`, differentiable by JAX itself."""
    return lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=_DIMENSIONS)


def _conv_transpose_by_phases(x, kernel):
    """Computes the four phases of the output by one 2×2 convolution, then interleaves them.

    Along one axis, y[2m] = x[m-1]·k[0] + x[m]·k[2] and y[2m+1] = x[m]·k[1] + x[m+1]·k[3]: two
    neighbours each, so a 2×2 window over the padded input sees all that four outputs need.
    """
    batch, height, width, channels = x.shape
    if height * width <= _PLAIN_FORWARD_PIXELS:
        return plain_conv_transpose(x, kernel)
    features = kernel.shape[-1]
    taps = kernel.reshape(2, 2, 2, 2, channels, features)  # [tap, phase] for rows, then columns
    weights = taps.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, channels, 4 * features)
    windows = _conv_on_cpu(x, weights).reshape(batch, height + 1, width + 1, 2, 2, features)
    # The odd phase of pixel m sits in the window that starts at m, one further than the even one.
    rows = [
        jnp.stack([windows[:, p : p + height, q : q + width, p, q] for q in (0, 1)], axis=3)
        for p in (0, 1)
    ]  # each [B, H, W, 2, F]
    phases = jnp.stack(rows, axis=2)  # [B, H, 2, W, 2, F]
    return phases.reshape(batch, 2 * height, 2 * width, features)


def _conv_transpose_backward(residuals, gradient):
    def plain(x, kernel, gradient):
        return jax.vjp(plain_conv_transpose, x, kernel)[1](gradient)

    def rearranged(x, kernel, gradient):
        dx = transposed_input_gradient(gradient, kernel)
        return dx, _conv_transpose_kernel_gradient(x, gradient).astype(kernel.dtype)

    return lax.platform_dependent(*residuals, gradient, cpu=rearranged, default=plain)


conv_transpose_4x4.defvjp(
    lambda x, kernel: (conv_transpose_4x4(x, kernel), (x, kernel)), _conv_transpose_backward
)


def transposed_input_gradient(gradient, kernel):
    """Maps the gradient [B, 2H, 2W, F] of `conv_transpose_4x4`'s result to that of x, on a CPU."""
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    if gradient.dtype == jnp.bfloat16:
        return bf16.conv_4x4_stride_2(gradient, mirrored)
    return lax.conv_general_dilated(
        gradient, mirrored, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_DIMENSIONS
    )


def _conv_transpose_kernel_gradient(x, gradient):
    """Sums, over pixels i, x[i] ⊗ gradient[2i + 2 - t] for each of the 4×4 taps t."""
    height, width, channels = x.shape[1:]
    features = gradient.shape[-1]

    def shifted(gradient):  # [D, 2H, 2W, F] -> [D, H, W, 16 F]
        padded = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (0, 0)))
        blocks = padded.reshape(-1, height + 1, 2, width + 1, 2, features)
        blocks = blocks.transpose(0, 1, 3, 2, 4, 5)  # [D, H+1, W+1, 2, 2, F]
        views = [blocks[:, p : p + height, q : q + width] for p in (0, 1) for q in (0, 1)]
        return jnp.stack(views, axis=3).reshape(-1, height, width, 16 * features)

    def term(x, gradient):
        return per_pixel(x, shifted(gradient))

    if x.dtype == jnp.bfloat16:
        product = _sum_in_bfloat16(x, gradient, left=lambda x: x, right=shifted)
    else:
        product = sum_over_images(term, (x, gradient))
    taps = product.reshape(channels, 2, 2, 2, 2, features)  # [C, block y, x, inner y, x, F]
    taps = taps.transpose(1, 3, 2, 4, 0, 5).reshape(4, 4, channels, features)
    return taps[::-1, ::-1]  # shift s of the gradient belongs to tap t = 3 - s


def _sum_in_bfloat16(x, gradient, left, right):
    """Returns the matrix Σ left(x) right(gradient) over all pixels of all images.

    Numbers are moved as `bf16.bits`.

    Args:
      x: [B, H, W, C], bfloat16.
      gradient: [B, …, F], bfloat16.
      left: maps x of one image, channels first, [C, H·W], to [P, H·W].
      right: maps the gradient of one image to [1, H, W, Q].

    Returns:
      [P, Q], float32.
    """

    def term(x, gradient):
        columns = right(gradient)
        return bf16.product(left(x[0]), columns.reshape(-1, columns.shape[-1]))

    channels_first = bf16.bits(x).reshape(x.shape[0], -1, x.shape[-1]).swapaxes(1, 2)
    return sum_over_images(term, (channels_first, bf16.bits(gradient)))


def per_pixel(rows, columns):
    """Returns Σ rows ⊗ columns over pixels: of […, P] and […, Q] the [P, Q], float32 or wider."""
    rows, columns = (a.reshape(-1, a.shape[-1]) for a in (rows, columns))
    return lax.dot_general(
        rows, columns, (((0,), (0,)), ((), ())), preferred_element_type=accumulator(rows.dtype)
    )


def sum_over_images(term, divided, shared=()):
    """Adds up what a function makes of each image of a batch.

    The images follow one another in a scan, so that what is made of one stays in the cache; of a
    batch that is divided between devices, each scans its own.

    Args:
      term: maps one image of each array of `divided`, [1, …], and `shared` to an array.
      divided: arrays [B, …].
      shared: arrays that belong to all images.

    Returns:
      The sum.
    """
    shape = jax.eval_shape(term, *(a[:1] for a in divided), *shared)

    def of_these(divided, shared):
        def add(total, images):
            return total + term(*(image[None] for image in images), *shared), None

        return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), divided)[0]

    return _by_device(of_these, divided, shared, summed=True)


def map_images(function, divided, shared=()):
    """Maps each image of a batch by itself, as `sum_over_images` does.

    Args:
      function: maps one image of each array of `divided`, [1, …], and `shared` to [1, …].
      divided: arrays [B, …].
      shared: arrays that belong to all images.

    Returns:
      [B, …].
    """

    def of_these(divided, shared):
        def mapped(_, images):
            return None, function(*(image[None] for image in images), *shared)[0]

        return lax.scan(mapped, None, divided)[1]

    return _by_device(of_these, divided, shared, summed=False)


def _by_device(function, divided, shared, summed: bool):
    """Has each device apply (divided, shared) -> array to its own part of a batch."""
    axes = jax.sharding.get_abstract_mesh().axis_names
    divided, shared = tuple(divided), tuple(shared)
    if batch_shards(divided[0].shape[0]) == 1:
        return function(divided, shared)
    spec = jax.sharding.PartitionSpec
    return jax.shard_map(
        (lambda *a: lax.psum(function(*a), axes)) if summed else function,
        in_specs=(spec(axes), spec()),
        out_specs=spec() if summed else spec(axes),
        check_vma=False,
    )(divided, shared)


def batch_shards(batch: int) -> int:
    """Returns over how many devices the batch is divided, 1 outside a mesh."""
    shards = math.prod(jax.sharding.get_abstract_mesh().shape.values())
    return shards if batch % shards == 0 else 1


def batch_stays_divided(x):
    """Keeps [B, …] divided between devices by its batch, where parameters are divided too.

    Without a word the compiler may divide the features instead, and send activations around; with
    it, each layer's parameters are gathered when their turn comes, and let go.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("model", 1) == 1 or batch_shards(x.shape[0]) == 1:
        return x
    return lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(mesh.axis_names))


@jax.custom_vjp
def max_pool_2x2(x):
    """2×2 max-pool of stride 2, as `nnx.max_pool(x, (2, 2), (2, 2))`.

    Args:
      x: [B, H, W, C], H and W even.

    Returns:
      [B, H/2, W/2, C]. Where several of the four are largest, the gradient goes to the first in
      row order, as XLA's select-and-scatter does; after a ReLU such ties are common.
    """
    return lax.platform_dependent(x, cpu=_max_of_quarters, default=plain_max_pool)


def plain_max_pool(x):
    """The reference form of `max_pool_2x2`, differentiable by JAX itself."""
    return nnx.max_pool(x, (2, 2), strides=(2, 2))


def blocks_of(x):
    """Divides [B, H, W, C] into blocks of 2×2 pixels, [B, H/2, 2, W/2, 2, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)


def quarters(x):
    """Splits [B, H, W, C] into the four pixels of each 2×2 block, row by row, [B, H/2, W/2, C]."""
    blocks = blocks_of(x)
    return [blocks[:, :, p, :, q] for p in (0, 1) for q in (0, 1)]


def to_first_equal(blocks, selected, gradient):
    """Sends each block's gradient to the first of its four pixels that equals the selected value.

    Args:
      blocks: [B, H/2, 2, W/2, 2, C].
      selected: [B, H/2, W/2, C], a value of each block.
      gradient: [B, H/2, W/2, C].

    Returns:
      [B, H/2, 2, W/2, 2, C], zero elsewhere.
    """
    equal = blocks == selected[:, :, None, :, None]
    # A block is compared with itself in this form only: where a program reads one array both pixel
    # by pixel and by blocks, XLA:CPU has been seen to write its result over what it still needs.
    first = first_true([equal[:, :, p : p + 1, :, q : q + 1] for p in (0, 1) for q in (0, 1)])
    place = jnp.arange(4, dtype=jnp.int8).reshape(2, 1, 2, 1)
    return jnp.where(first == place, gradient[:, :, None, :, None], 0)


def first_true(four):
    """Returns which of four arrays is the first that is true, 3 where no other is, int8."""
    last = jnp.full(four[0].shape, 3, jnp.int8)
    return functools.reduce(
        lambda later, i: jnp.where(four[i], jnp.int8(i), later), (2, 1, 0), last
    )


def _max_of_quarters(x):
    return functools.reduce(jnp.maximum, quarters(x))


def _max_pool_forward(x):
    pooled = max_pool_2x2(x)
    return pooled, (x, pooled)


def _max_pool_backward(residuals, gradient):
    def plain(x, pooled, gradient):
        del pooled
        return jax.vjp(plain_max_pool, x)[1](gradient)[0]

    def compared(x, pooled, gradient):
        return to_first_equal(blocks_of(x), pooled, gradient).reshape(x.shape)

    return (lax.platform_dependent(*residuals, gradient, cpu=compared, default=plain),)


max_pool_2x2.defvjp(_max_pool_forward, _max_pool_backward)

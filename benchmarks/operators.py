"""Forms of the networks' operators that were tried on the CPU, side by side.

    python -m benchmarks.operators

Every form computes the same function on the shapes of configs/sigma2.py, or of configs/beetles.py
for attention, divided between two devices as a run's step is. The forms take turns; medians are
printed with what they reach in GFLOP/s, counted as the direct form needs them. `heatmap/models/`
has the ones that won.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import output
from heatmap import hardware
from heatmap.errors import guard

BATCH = 32
# (height and width, channels in, channels out) of the encoder's convolutions but the first.
CONVOLUTIONS = ((64, 32, 64), (32, 64, 128), (16, 128, 256))
# The same of the decoder's transposed convolutions, by the size of what goes in.
TRANSPOSED = ((8, 256, 128), (16, 256, 64), (32, 128, 32))
# Height and width, channels in and out of the encoder's first; tokens, heads and width of a head.
FIRST, ATTENTION = ((128, 1, 32),), ((261, 6, 64),)
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
Form = Callable[[Any, Any], Any]


def by_im2col(x, kernel):
    """3×3 convolution as one matrix product for each picture."""
    import jax.numpy as jnp

    height, width, channels = x.shape[1:]
    matrix = kernel.reshape(9 * channels, -1)

    def one(x):  # [D, H, W, C]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        views = [padded[:, p : p + height, q : q + width] for p in range(3) for q in range(3)]
        return jnp.concatenate(views, axis=-1) @ matrix

    return _by_picture(one, x)


def by_winograd(x, kernel):
    """3×3 convolution as F(2×2, 3×3) of Lavin and Gray (CVPR 2016): 16 products for 36."""
    import jax.numpy as jnp
    from jax import lax

    height, width, channels = x.shape[1:]
    rows, columns = height // 2, width // 2
    spread = jnp.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], jnp.float32)
    weights = jnp.einsum("ai,bj,ijcf->abcf", spread, spread, kernel).reshape(16, channels, -1)

    def differences(parts):  # of four neighbours, the input's transform along one axis
        a, b, c, d = parts
        return [a - c, b + c, c - b, b - d]

    def sums(parts):  # the output's
        a, b, c, d = parts
        return [a + b + c, b - c - d]

    def one(x):  # [D, H, W, C]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        blocks = padded.reshape(-1, rows + 1, 2, columns + 1, 2, channels)
        lines = [blocks[:, i : i + rows, p] for i in (0, 1) for p in (0, 1)]
        tiles = [
            tile
            for line in differences(lines)
            for tile in differences(
                [line[:, :, j : j + columns, q] for j in (0, 1) for q in (0, 1)]
            )
        ]
        stacked = jnp.stack(tiles).reshape(16, -1, channels)
        products = lax.dot_general(stacked, weights, (((2,), (1,)), ((0,), (0,))))
        products = products.reshape(4, 4, -1, rows, columns, kernel.shape[-1])
        quarters = [jnp.stack(sums(line), axis=3) for line in sums(products)]
        return jnp.stack(quarters, axis=2).reshape(-1, height, width, kernel.shape[-1])

    return _by_picture(one, x)


def by_rows(x, kernel, product):
    """3×3 convolution as `heatmap/models/bf16.py` computes it, by a product of one's own."""
    import jax.numpy as jnp

    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    stacked = jnp.concatenate([padded[:, p : p + height] for p in range(3)], axis=-1)
    taps = kernel.swapaxes(1, 2).reshape(3 * channels, -1)
    added = product(stacked.reshape(-1, 3 * channels), taps)
    added = added.reshape(batch, height, width + 2, 3, -1)
    return sum(added[:, :, q : q + width, q] for q in range(3))


def in_bfloat16_parts(a, b):
    """Product of float32 matrices as three of bfloat16: 16 digits of each factor, not 24.

    What the large and the small part of each make, but for the product of the two small ones
    (Henry, Tang and Heinecke, 2019, arXiv:1904.06376).
    """
    import jax.numpy as jnp

    (a, small_a), (b, small_b) = ((x.astype(jnp.bfloat16), _rest(x)) for x in (a, b))
    pairs = ((a, b), (small_a, b), (a, small_b))
    return sum(jnp.matmul(*pair, preferred_element_type=jnp.float32) for pair in pairs)


def _rest(x):
    import jax.numpy as jnp

    return (x - x.astype(jnp.bfloat16).astype(x.dtype)).astype(jnp.bfloat16)


def _by_picture(function, x):
    """Applies a function to the pictures of each device, one after another."""
    from jax import lax

    from heatmap.models import ops

    shards = ops.batch_shards(x.shape[0])
    scanned = x.reshape(shards, -1, *x.shape[1:]).swapaxes(0, 1)
    _, found = lax.scan(lambda _, pictures: (None, function(pictures)), None, scanned)
    return found.swapaxes(0, 1).reshape(x.shape[0], *found.shape[2:])


def by_space_to_depth(gradient, kernel):
    """Input gradient of the transposed convolution: 2×2 blocks as channels, then stride 1."""
    import jax.numpy as jnp
    from jax import lax

    batch, height, width, features = gradient.shape
    rows, columns = height // 2 + 1, width // 2 + 1
    padded = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blocks = padded.reshape(batch, rows, 2, columns, 2, features).transpose(0, 1, 3, 2, 4, 5)
    taps = kernel[::-1, ::-1].swapaxes(2, 3).reshape(2, 2, 2, 2, features, -1)
    weights = taps.transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * features, -1)
    blocks = blocks.reshape(batch, rows, columns, 4 * features)
    return lax.conv_general_dilated(blocks, weights, (1, 1), "VALID", dimension_numbers=_DIMENSIONS)


def forms() -> dict[str, dict[str, Form]]:
    """Lists for each operator the forms that compute it, the one in use first."""
    import jax
    import jax.numpy as jnp

    from heatmap.models import ops, stem, vit

    def trained(stage):
        def step(x, kernel):
            ones = np.ones(kernel.shape[-1], np.float32)
            return jax.grad(lambda kernel: stage(x, kernel, ones, 0 * ones)[0].sum())(kernel)

        return step

    def attending(attention):
        return lambda query_and_key, value: attention(*query_and_key.swapaxes(0, 1), value)

    def kernel_gradient(convolution):
        def gradient(x, above):
            kernel = jnp.zeros((3, 3, x.shape[-1], above.shape[-1]), x.dtype)
            return jax.vjp(lambda kernel: convolution(x, kernel), kernel)[1](above)[0]

        return gradient

    return {
        "convolution": {
            "XLA's own": ops.plain_conv,
            "im2col": by_im2col,
            "Winograd": by_winograd,
            "rows": lambda x, kernel: by_rows(x, kernel, jnp.matmul),
            "rows, in three parts": lambda x, kernel: by_rows(x, kernel, in_bfloat16_parts),
        },
        "convolution, bfloat16": {"rows": ops.conv_3x3, "XLA's own": ops.plain_conv},
        "kernel gradient": {
            "products of shifted pictures": kernel_gradient(ops.conv_3x3),
            "XLA's own": kernel_gradient(ops.plain_conv),
        },
        "kernel gradient, bfloat16": {
            "products of shifted pictures": kernel_gradient(ops.conv_3x3),
            "XLA's own": kernel_gradient(ops.plain_conv),
        },
        "transposed, input gradient": {
            "stride 2": ops.transposed_input_gradient,
            "space to depth": by_space_to_depth,
        },
        "first stage, there and back": {
            "one operator": trained(stem.conv_norm_relu_pool),
            "convolution, then the rest": trained(stem.plain_conv_norm_relu_pool),
        },
        "attention": {
            "scales what is small": attending(vit.plain_attention),
            "JAX's own": attending(jax.nn.dot_product_attention),
        },
    }


SHAPES = {
    "convolution": CONVOLUTIONS,
    "convolution, bfloat16": CONVOLUTIONS,
    "kernel gradient": CONVOLUTIONS,
    "kernel gradient, bfloat16": CONVOLUTIONS,
    "transposed, input gradient": TRANSPOSED,
    "first stage, there and back": FIRST,
    "attention": ATTENTION,
}


def arguments_of(operator: str, shape: Sequence[int], rng: np.random.Generator):
    """Draws what an operator is given, and counts its operations: (batched, other, operations)."""
    import jax.numpy as jnp

    if operator.endswith(", bfloat16"):
        *given, work = arguments_of(operator.removesuffix(", bfloat16"), shape, rng)
        return *(a.astype(jnp.bfloat16) for a in given), work
    size, channels, features = shape
    if operator == "attention":
        heads = rng.normal(size=(BATCH, 3, *shape)).astype(np.float32)
        return heads[:, :2], heads[:, 2], 4.0 * BATCH * size**2 * channels * features

    def picture(side: int, depth: int):
        return rng.normal(size=(BATCH, side, side, depth)).astype(np.float32)

    taps = 4 if operator.startswith("transposed") else 3
    work = 2.0 * BATCH * size**2 * channels * features * taps**2
    kernel = rng.normal(size=(taps, taps, channels, features)).astype(np.float32)
    if operator == "convolution":
        return picture(size, channels), kernel, work
    if operator.startswith("first"):
        return picture(size, channels), kernel, 2 * work
    if operator == "kernel gradient":
        return picture(size, channels), picture(size, features), work
    return picture(2 * size, features), kernel, work


def measure(rounds: int) -> list[dict[str, Any]]:
    """Times all forms in turns, and returns the medians as rows."""
    import jax

    from heatmap import state

    mesh, rng = state.create_mesh(), np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    with jax.set_mesh(mesh):
        for operator, named in forms().items():
            for shape in SHAPES[operator]:
                *given, work = arguments_of(operator, shape, rng)
                shardings = [
                    state.sharded(mesh) if len(a) == BATCH else state.replicated(mesh)
                    for a in given
                ]
                placed = [jax.device_put(*pair) for pair in zip(given, shardings, strict=True)]
                compiled = {name: jax.jit(form) for name, form in named.items()}
                seconds: dict[str, list[float]] = {name: [] for name in named}
                for turn in range(rounds + 1):
                    for name, form in compiled.items():
                        began = time.perf_counter()
                        jax.block_until_ready(form(*placed))
                        if turn:  # the first compiles
                            seconds[name].append(time.perf_counter() - began)
                for name, found in seconds.items():
                    median = float(np.median(found))
                    rows.append(
                        {
                            "operator": operator,
                            "shape": _spelt(operator, shape),
                            "form": name,
                            "ms": 1e3 * median,
                            "GFLOP/s": work / median / 1e9,
                        }
                    )
    return rows


def _spelt(operator: str, shape: Sequence[int]) -> str:
    if operator == "attention":
        tokens, heads, width = shape
        return f"{tokens} tokens, {heads}×{width}"
    size, channels, features = shape
    return f"{size}×{size}, {channels}→{features}"


def draw(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draws what each form reaches as bars."""
    labels = [f"{row['operator']}, {row['shape']}: {row['form']}" for row in rows]
    axes.barh(labels, [row["GFLOP/s"] for row in rows], color="#0b6e8f")
    axes.invert_yaxis()
    axes.set_xlabel("GFLOP/s, as the direct form counts them")
    axes.tick_params(axis="y", labelsize=6)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, measures and publishes."""
    parser = output.parser("operators", __doc__)
    parser.add_argument("--rounds", type=output.count, default=11, help="turns of each form")
    options = parser.parse_args(arguments)
    from heatmap import state

    state.divide_cpu(BATCH)
    rows = measure(options.rounds)
    output.publish(options.out, "operators", rows, lambda axes: draw(rows, axes))


if __name__ == "__main__":
    hardware.restart_with_kept_memory()
    guard(main)

"""The vision transformers, against NumPy by hand; tests/test_parity.py compares with PyTorch."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from heatmap.errors import UserError
from heatmap.models import positions, vit
from heatmap.models.rngs import Rngs
from heatmap.models.vit import ARCHITECTURES, ViT, ViTConfig
from heatmap.models.weights import parameters
from tests.helpers import quick_jit
from tests.published import random_parameters

PUBLISHED = {  # without the mask token
    "dinov3_vits16": 21_596_160,
    "dinov3_vits16plus": 28_692_480,
    "dinov3_vitb16": 85_659_648,
    "dinov3_vitl16": 303_128_576,
    "dinov3_vith16plus": 840_591_360,
    "dinov2_vits14": 22_056_192,
    "dinov2_vits14_reg": 22_057_728,
    "dinov2_vitb14": 86_579_712,
    "dinov2_vitb14_reg": 86_582_784,
}
KINDS = {  # two narrow blocks of each kind
    "rotary": ViTConfig.tiny16(),
    "gated": dataclasses.replace(ViTConfig.tiny16(), gated=True),
    "learned": dataclasses.replace(ViTConfig.dinov2(24, 2, 3, registers=0), position_grid=5),
    "learned, registers": dataclasses.replace(
        ViTConfig.dinov2(24, 2, 3, registers=4), position_grid=5
    ),
}


def forward(config, tree, image, dtype=jnp.float32):
    """(features, CLS token) of our network."""
    graph = nnx.split(nnx.eval_shape(lambda: ViT(config, dtype, Rngs(0))))[0]
    tree = jax.tree.map(lambda a: jnp.array(a, jnp.float32), tree)
    run = quick_jit(lambda tree, image: nnx.merge(graph, tree)(image))
    return [np.asarray(a) for a in run(tree, jnp.array(image, jnp.float32))]


# --- the definition, in float64 -----------------------------------------------------------------


def layer_norm(x, p, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def turn(q, y, x):
    """Rotates the channels of one token, at (y, x) of a picture from -1 to 1, pair by pair."""
    half, quarter = len(q) // 2, len(q) // 4
    result = np.empty_like(q)
    for i in range(half):
        place, frequency = (y, i) if i < quarter else (x, i - quarter)
        angle = 2 * np.pi * place / 100 ** (frequency / quarter)
        c, s = np.cos(angle), np.sin(angle)
        result[i] = q[i] * c - q[i + half] * s
        result[i + half] = q[i + half] * c + q[i] * s
    return result


def attend(x, p, config, grid):
    q, k, v = (linear(x, p[name]) for name in ("query", "key", "value"))
    wide = config.width // config.heads
    result = np.empty_like(x)
    for head in range(config.heads):
        part = slice(head * wide, (head + 1) * wide)
        qs, ks = q[:, part].copy(), k[:, part].copy()
        if not config.position_grid:
            for row, column in np.ndindex(*grid):
                token = 1 + config.registers + row * grid[1] + column
                y, x_ = (2 * (i + 0.5) / n - 1 for i, n in zip((row, column), grid, strict=True))
                qs[token], ks[token] = turn(qs[token], y, x_), turn(ks[token], y, x_)
        scores = np.exp(qs @ ks.T / np.sqrt(wide))
        result[:, part] = scores / scores.sum(1, keepdims=True) @ v[:, part]
    return linear(result, p["out"])


def mlp(x, p, gated):
    up = linear(x, p["up"])
    if gated:
        gate = linear(x, p["gate"])
        return linear(gate / (1 + np.exp(-gate)) * up, p["down"])
    return linear(up * (1 + erf(up / np.sqrt(2))) / 2, p["down"])


def by_hand(config, tree, image):
    """(features [h, w, C], CLS token [C]) of one picture [H, W, 3]."""
    patch = config.patch
    grid = (image.shape[0] // patch, image.shape[1] // patch)
    tokens = [tree["cls_token"]]
    for row, column in np.ndindex(*grid):
        pixels = image[row * patch :, column * patch :][:patch, :patch]
        tokens.append(linear(pixels.ravel(), tree["patch_embed"]))
    if config.position_grid:  # the tests use the table's own size, where nothing is interpolated
        tokens = [t + p for t, p in zip(tokens, tree["positions"], strict=True)]
    tokens[1:1] = list(tree.get("registers", []))
    x = np.stack(tokens)
    for i in range(config.depth):
        p = tree["blocks"][i]
        normed = layer_norm(x, p["norm1"], config.epsilon)
        x = x + p["scale1"] * attend(normed, p["attention"], config, grid)
        normed = layer_norm(x, p["norm2"], config.epsilon)
        x = x + p["scale2"] * mlp(normed, p["mlp"], config.gated)
    x = layer_norm(x, tree["norm"], config.epsilon)
    return x[1 + config.registers :].reshape(*grid, -1), x[0]


@functools.cache
def example(kind):
    config = KINDS[kind]
    size = (70, 70) if config.position_grid else (32, 80)
    image = np.random.default_rng(1).normal(size=(2, *size, 3))
    return config, random_parameters(config), image


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_cls_token_are_those_of_the_definition(kind):
    config, tree, image = example(kind)
    found = forward(config, tree, image)
    for i in range(len(image)):
        for mine, expected in zip(found, by_hand(config, tree, image[i]), strict=True):
            assert np.abs(mine[i] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_error(kind):
    """Matrix products in bfloat16: 0.4–0.6 % of the features' spread (root mean square)."""
    config, tree, image = example(kind)
    for fine, coarse in zip(
        forward(config, tree, image), forward(config, tree, image, jnp.bfloat16), strict=True
    ):
        assert coarse.dtype == np.float32
        error = np.sqrt(((coarse - fine) ** 2).mean()) / fine.std()
        assert 1e-4 < error < 0.015


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    config = ARCHITECTURES[name]
    shallow, deeper = (
        sum(leaf.size for leaf in jax.tree.leaves(parameters(dataclasses.replace(config, depth=d))))
        for d in (1, 2)
    )
    assert shallow + (config.depth - 1) * (deeper - shallow) == PUBLISHED[name]


def test_every_published_architecture_has_its_count_here():
    assert set(ARCHITECTURES) - set(PUBLISHED) == {"tiny16"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_remat_gives_the_same_gradients_and_keeps_less(kind):
    """What is kept for the gradients of a block is what went into it."""
    image = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    image = image[:, : 4 * KINDS[kind].patch, : 4 * KINDS[kind].patch]
    config = KINDS[kind]
    params = jax.tree.map(jnp.float32, random_parameters(config))
    gradients, kept = [], []
    for remat in (False, True):

        def loss(params, remat=remat):
            model = nnx.eval_shape(lambda: ViT(config, jnp.float32, Rngs(0), remat))
            return jnp.sum(jnp.sin(3 * nnx.merge(nnx.split(model)[0], params)(image)[0]))

        gradients.append(quick_jit(jax.grad(loss))(params))
        # Only described: computed one by one, these would be as many compiled programs.
        pullback = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback)))
    leaves = [jax.tree.leaves(tree) for tree in gradients]
    largest = max(float(jnp.abs(leaf).max()) for leaf in leaves[0])
    for plain, again in zip(*leaves, strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-4, atol=1e-6 * largest)
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("size", [(250, 256), (256, 100), (8, 16), (0, 16)])
def test_sizes_that_patches_do_not_cover_are_refused(size):
    model = nnx.eval_shape(lambda: ViT(ViTConfig.tiny16(), jnp.float32, Rngs(0)))
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    with pytest.raises(UserError, match=r"data\.image_size=.*16×16 pixels: choose multiples of 16"):
        nnx.eval_shape(lambda m, x: m(x), model, image)


@pytest.mark.parametrize("size", [(16, 16), (48, 32), (96, 16)])
def test_any_size_that_they_cover_is_read(size):
    features, cls_token = forward(
        KINDS["rotary"], random_parameters(KINDS["rotary"]), np.zeros((1, *size, 3))
    )
    assert features.shape == (1, size[0] // 16, size[1] // 16, 64)
    assert cls_token.shape == (1, 64)


# --- parts --------------------------------------------------------------------------------------


def test_initial_weights_are_small_centred_and_the_same_on_every_platform():
    weights = np.asarray(vit._small(jax.random.key(0), (1000, 100)))
    assert weights.std() == pytest.approx(0.02, rel=0.01)
    assert abs(weights.mean()) < 2e-4
    # Exact operations on the generator's bits, so that NumPy gets the very same numbers.
    bits = np.asarray(jax.random.bits(jax.random.key(0), (1000, 100), "uint32"))
    uniform = ((bits >> 9) | np.uint32(0x3F800000)).view(np.float32) - 1
    expected = (2 * uniform - 1) * np.float32(0.02 * np.sqrt(3))
    np.testing.assert_array_equal(weights, expected)


def test_rotation_is_of_length_one_and_leaves_the_first_tokens():
    cosines, sines = positions.rope((3, 5), 4, 16)
    assert cosines.shape == sines.shape == (4 + 15, 16)
    assert {cosines.dtype, sines.dtype} == {np.dtype("float32")}
    np.testing.assert_allclose(cosines**2 + sines**2, 1, rtol=1e-6)
    np.testing.assert_array_equal(cosines[:4], 1)
    np.testing.assert_array_equal(sines[:4], 0)


def test_rotation_is_computed_in_float32():
    """An angle in bfloat16 has two digits: neighbouring patches would fall together."""
    x = jnp.ones((1, 4 + 15, 2, 16), jnp.bfloat16)
    angles = positions.rope((3, 5), 4, 16)
    found = positions.rotate(x, *angles)
    assert found.dtype == jnp.bfloat16
    exact = positions.rotate(x.astype(jnp.float32), *angles)
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("size", "wanted"), [(37, 37), (37, 16), (5, 9), (37, 40)])
def test_bicubic_weights_keep_constants_and_nearly_straight_lines(size, wanted, antialias):
    weights = positions.cubic_weights(size, wanted, antialias)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    reach = 2 * max(1, size / wanted)
    inner = (centres > reach) & (centres < size - 1 - reach)
    # Neither is exact on lines: only a = -0.5 without normalisation is.
    np.testing.assert_allclose((weights @ np.arange(size))[inner], centres[inner], atol=0.06)
    if size == wanted:
        np.testing.assert_array_equal(weights, np.eye(size))


def test_bicubic_weights_by_hand():
    """Halfway between two pixels: -3/32·…, from the kernel's polynomials with a = -0.75."""
    weights = positions.cubic_weights(4, 8, antialias=False)
    # Output 3 lies at 1.25: distances 1.25, 0.25, 0.75, 1.75.
    near = lambda d: 1.25 * d**3 - 2.25 * d**2 + 1  # noqa: E731
    far = lambda d: -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)  # noqa: E731
    expected = [far(1.25), near(0.25), near(0.75), far(1.75)]
    np.testing.assert_allclose(weights[3], expected, rtol=1e-6)
    # Output 0 lies at -0.25: what falls off the left edge counts for its first pixel.
    expected = [far(1.75) + near(0.75) + near(0.25), far(1.25), 0, 0]
    np.testing.assert_allclose(weights[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "kernel"),
    [
        ("cpu", None, "bfloat16", None),
        ("TPU v5e", None, "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB", "8.0", "bfloat16", "cudnn"),
        ("NVIDIA A100-SXM4-40GB", "8.0", "float32", None),
        ("Tesla V100-SXM2-16GB", "7.0", "bfloat16", None),
        ("NVIDIA GeForce RTX 2080", "7.5", "bfloat16", None),
        ("AMD Instinct MI300X", "gfx942", "bfloat16", None),
    ],
)
def test_fused_attention_is_asked_for_where_there_is_one(
    monkeypatch, kind, capability, dtype, kernel
):
    device = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert vit.attention_kernel(jnp.dtype(dtype)) == kernel

"""Heads by hand: sizes, counts, and each layer against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from heatmap import models, optim
from heatmap.errors import UserError
from heatmap.models.heads import HEADS, ClsMlpHead, DeconvHead, SimpleHead
from heatmap.models.norm import GroupNormRelu
from heatmap.models.rngs import Rngs
from tests.helpers import MODEL_SETTINGS, make_config, quick_jit


def shaped(head, width=384, grid=(16, 16), maps=(64, 64), points=4):
    return nnx.eval_shape(lambda: head(width, grid, maps, points, jnp.float32, Rngs(0)))


def built(head, width, grid, maps, points, seed=0):
    """A head, every parameter of which is drawn."""
    model = head(width, grid, maps, points, jnp.float32, Rngs(seed))
    rng = np.random.default_rng(seed)
    draw = lambda a: jnp.array(rng.normal(0, 0.3, a.shape) + 0.1, jnp.float32)  # noqa: E731
    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    return model


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


# --- sizes --------------------------------------------------------------------------------------


def test_deconv_head_has_2_098_820_parameters_for_four_points():
    """And not the "~700K" that was once written down for these very layers."""
    first, second = 16 * 384 * 256 + 256, 16 * 256 * 128 + 128
    norms, last = 2 * 256 + 2 * 128, 128 * 4 + 4
    assert count(shaped(DeconvHead)) == first + second + norms + last == 2_098_820


@pytest.mark.parametrize(
    ("head", "expected"),
    [(SimpleHead, 9 * 384 * 4 + 4), (ClsMlpHead, 384 * 384 + 384 + 384 * 8 + 8)],
)
def test_counts_of_the_others(head, expected):
    assert count(shaped(head)) == expected


@pytest.mark.parametrize(
    ("grid", "maps", "stages"),
    [
        ((16, 16), (64, 64), 2),
        ((16, 16), (128, 128), 3),
        ((12, 20), (48, 80), 2),
        ((8, 8), (16, 16), 1),
    ],
)
def test_the_size_of_the_maps_decides_the_number_of_stages(grid, maps, stages):
    head = shaped(DeconvHead, grid=grid, maps=maps)
    assert len(head.deconvs) == stages
    features = jax.ShapeDtypeStruct((2, *grid, 384), jnp.float32)
    output = nnx.eval_shape(lambda h, x: h(x, None), head, features)
    assert output.shape == (2, *maps, 4)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"targets.heatmap_size": (60, 60)}, r"4×4 features into maps of 8×8, 16×16, 32×32; .*60"),
        ({"targets.heatmap_size": (32, 16)}, r"\(32, 16\) is none of these"),
        ({"model.head": "simple", "targets.heatmap_size": (3, 8)}, r"\(3, 8\) is smaller"),
        ({"model.head": "decnov"}, r"model\.head='decnov' is not known: did you mean 'deconv'"),
        ({"model.backbone": "dinov3_vits14"}, r"model\.backbone='dinov3_vits14' .*'dinov3_vits16'"),
        ({"data.image_size": (64, 60)}, r"data\.image_size=\(64, 60\) cannot be divided"),
        ({"data.channels": 1}, r"reads colour pictures: data\.channels must be 3, got 1"),
        ({"model.backbone_weights": "w"}, r"'random' and model\.backbone_weights='w' contradict"),
        (
            {"model.backbone_init": "pretrained", "model.backbone": "dinov3_vits16"},
            r"needs pretrained weights\..*heatmap\.models\.conv",
        ),
        (
            {"model.backbone_init": "pretrained", "model.backbone_weights": "nowhere"},
            r"model\.backbone_weights='nowhere' does not exist",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides, sentence):
    settings = MODEL_SETTINGS["vit"] | {
        "model.name": "vit",
        "data.image_size": (64, 64),
        "targets.heatmap_size": (16, 16),
    }
    with pytest.raises(UserError, match=sentence):
        models.create(make_config(**(settings | overrides)), 4, Rngs(0))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_what_its_output_attribute_says(head):
    settings = MODEL_SETTINGS["vit"] | {"model.name": "vit", "model.head": head}
    model = nnx.eval_shape(lambda: models.create(make_config(**settings), 5, Rngs(0)))
    output = nnx.eval_shape(
        lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 128, 128, 3), "float32")
    )
    expected = {"heatmaps": (2, 64, 64, 5), "coordinates": (2, 5, 2)}[model.output]
    assert (output.shape, output.dtype) == (expected, jnp.float32)


@pytest.mark.parametrize("head", HEADS)
def test_weight_decay_finds_kernels_only(head):
    """`optim.decay_paths` of configs/common.py: no biases, and no scales of norms."""
    state = nnx.to_flat_state(nnx.state(shaped(HEADS[head]), nnx.Param))
    names = {optim.path_name(path): leaf.get_value().ndim for path, leaf in state}
    paths = tuple(common.get_config().optim.decay_paths)
    decayed = {name for name in names if optim.matches(paths, name)}
    assert decayed == {name for name, dimensions in names.items() if dimensions > 1}


# --- values -------------------------------------------------------------------------------------


def transposed_convolution(x, kernel, bias):
    """PyTorch's ConvTranspose2d(4, stride=2, padding=1) of [H, W, C], its kernel mirrored."""
    height, width, _ = x.shape
    y = np.zeros((2 * height, 2 * width, kernel.shape[-1])) + bias
    for i, j, p, q in np.ndindex(height, width, 4, 4):
        row, column = 2 * i + p - 1, 2 * j + q - 1
        if 0 <= row < 2 * height and 0 <= column < 2 * width:
            y[row, column] += x[i, j] @ kernel[3 - p, 3 - q]
    return y


def group_norm(x, scale, bias):
    """Over 32 groups of the channels of [H, W, C]."""
    groups = x.reshape(*x.shape[:2], 32, -1)
    mean = groups.mean((0, 1, 3), keepdims=True)
    variance = groups.var((0, 1, 3), keepdims=True)
    return ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias


def test_deconv_head_is_its_layers_one_after_the_other():
    head = built(DeconvHead, 6, (2, 3), (8, 12), 2)
    features = np.random.default_rng(0).normal(size=(2, 2, 3, 6))
    found = quick_jit(lambda x: head(x, None))(jnp.array(features, jnp.float32))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(head)))
    for i in range(2):
        x = features[i]
        for stage in range(2):
            x = transposed_convolution(
                x, p["deconvs"][stage]["kernel"], p["deconvs"][stage]["bias"]
            )
            x = np.maximum(group_norm(x, p["norms"][stage]["scale"], p["norms"][stage]["bias"]), 0)
        expected = x @ p["last"]["kernel"][0, 0] + p["last"]["bias"]
        assert np.abs(found[i] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_simple_head_is_relu_then_bilinear_then_convolution():
    head = built(SimpleHead, 3, (2, 2), (8, 8), 1)
    features = np.random.default_rng(1).normal(size=(1, 2, 2, 3))
    found = quick_jit(lambda x: head(x, None))(jnp.array(features, jnp.float32))[0, ..., 0]
    weights = np.zeros((8, 2))  # of the two pixels, centres at 1.5 and 5.5 of eight
    for i, centre in enumerate((np.arange(8) + 0.5) / 4 - 0.5):
        weights[i, 1] = np.clip(centre, 0, 1)
        weights[i, 0] = 1 - weights[i, 1]
    x = np.einsum("ai,bj,ijc->abc", weights, weights, np.maximum(features[0], 0))
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    kernel, bias = np.asarray(head.conv.kernel[...]), np.asarray(head.conv.bias[...])
    for i, j in np.ndindex(8, 8):
        expected = (padded[i : i + 3, j : j + 3] * kernel[..., 0]).sum() + bias[0]
        assert found[i, j] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_cls_mlp_head_is_two_layers_and_a_sigmoid_on_the_cls_token():
    head = built(ClsMlpHead, 6, (2, 2), (8, 8), 3)
    token = np.random.default_rng(2).normal(size=(4, 6))
    found = head(None, jnp.array(token, jnp.float32))
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(head)))
    hidden = np.maximum(token @ p["hidden"]["kernel"] + p["hidden"]["bias"], 0)
    logits = hidden @ p["last"]["kernel"] + p["last"]["bias"]
    np.testing.assert_allclose(found, (1 / (1 + np.exp(-logits))).reshape(4, 3, 2), rtol=1e-5)


@pytest.mark.parametrize("head", ["deconv", "simple"])
def test_maps_start_near_zero(head):
    model = HEADS[head](64, (4, 4), (16, 16), 2, jnp.float32, Rngs(0))
    features = jnp.array(np.random.default_rng(0).normal(size=(2, 4, 4, 64)), jnp.float32)
    maps = np.asarray(quick_jit(lambda x: model(x, None))(features))
    assert 0 < np.abs(maps).max() < 0.15


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_group_norm_is_nnx_group_norm_in_parameters_value_and_gradients(offset):
    rng = np.random.default_rng(0)
    x, gradient = (jnp.array(rng.normal(size=(3, 5, 4, 64)), jnp.float32) for _ in range(2))
    scale, bias = (jnp.array(rng.normal(size=64), jnp.float32) for _ in range(2))

    def run(layer, x, scale, bias):
        layer.scale[...], layer.bias[...] = scale, bias
        return layer(x + offset)

    def both(*arguments):
        mine = lambda *a: run(GroupNormRelu(64, dtype=jnp.float32, rngs=nnx.Rngs(0)), *a)  # noqa: E731
        plain = lambda *a: nnx.relu(  # noqa: E731
            run(nnx.GroupNorm(64, 32, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0)), *a)
        )
        return [(v, *b(gradient)) for v, b in (jax.vjp(f, *arguments) for f in (mine, plain))]

    tolerance = 1e-5 if not offset else 2e-3  # 30 away from zero, a variance of 1 loses 3 digits
    for mine, plain in zip(*quick_jit(both)(x, scale, bias), strict=True):
        assert np.abs(mine - plain).max() <= tolerance * np.abs(plain).max()

"""The networks: sizes, modes, precision and refusals; and the operators against plain ones."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from heatmap import models
from heatmap import state as state_lib
from heatmap.errors import UserError
from heatmap.losses import LOSSES
from heatmap.models import MODELS, norm, ops, stem
from heatmap.models.rngs import Rngs
from tests.helpers import MODEL_SETTINGS, make_config, quick_jit

PARAMETERS = {"unet": 1_241_605, "regression": 430_602}  # 5 points, grey, 128×128 to 64×64 maps
SMALL = {"data.image_size": (32, 32), "targets.heatmap_size": (16, 16)}


def shaped(config, points=5):
    """A model without arrays, for what needs no arithmetic."""
    return nnx.eval_shape(lambda: models.create(config, points, Rngs(0)))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def output_of(config, points=5, batch=2):
    """Shape and dtype of what a model would return."""
    image = jax.ShapeDtypeStruct((batch, *config.data.image_size, config.data.channels), "float32")
    graph, arrays = nnx.split(shaped(config, points))
    with_key = lambda a, x: nnx.merge(graph, a)(x, nnx.Rngs(dropout=0))  # noqa: E731
    return jax.eval_shape(with_key, arrays, image)


@functools.cache
def built(name, dtype="float32"):
    """(network, weights) of a small model, its two modes compiled; shared by the tests below."""
    settings = SMALL | MODEL_SETTINGS[name] | {"model.name": name, "model.dtype": dtype}
    config = make_config(**settings)
    network, _ = state_lib.split_model(shaped(config, 3), ())

    def initialise():
        return state_lib.split_model(models.create(config, 3, Rngs(0)), ())[1]

    return quick_jit(network.predict), quick_jit(network.train), quick_jit(initialise)()


def test_keys_are_those_of_flax():
    def keys(rngs):
        drawn = (rngs.params(), rngs.dropout(), rngs.params(), rngs())
        return jnp.stack([jax.random.key_data(key) for key in drawn])

    expected = keys(nnx.Rngs(7))
    np.testing.assert_array_equal(keys(Rngs(7)), expected)
    np.testing.assert_array_equal(jax.jit(lambda: keys(Rngs(7)))(), expected)
    assert len(np.unique(expected, axis=0)) == 4


def picture(batch=4, seed=0, name="unet"):
    channels = MODEL_SETTINGS[name].get("data.channels", 1)
    pixels = np.random.default_rng(seed).uniform(size=(batch, 32, 32, channels))
    return jnp.array(pixels, jnp.float32)


# --- the networks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(name):
    assert count(shaped(make_config(**{"model.name": name}))) == PARAMETERS[name]


def unet_by_hand(points, channels, stride, skip):
    """Adds the layers up: kernels and biases, and scale and offset of each batch norm."""
    total = sum(9 * a * b + 3 * b for a, b in ((channels, 32), (32, 64), (64, 128), (128, 256)))
    kept = (128, 64, 0) if skip else (0, 0, 0)
    layers = [(256, 128), (128 + kept[0], 64), (64 + kept[1], 32), (32, 32)]
    layers = layers[: {4: 2, 2: 3, 1: 4}[stride]]
    total += sum(16 * a * b + 3 * b for a, b in layers)
    return total + (layers[-1][1] + 1) * points


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("stride", [4, 2, 1])
@pytest.mark.parametrize(("size", "channels", "points"), [((128, 128), 1, 5), ((96, 160), 3, 17)])
def test_unet_gives_maps_of_every_size_it_promises(size, channels, points, stride, skip):
    maps = (size[0] // stride, size[1] // stride)
    config = make_config(
        **{
            "data.image_size": size,
            "data.channels": channels,
            "targets.heatmap_size": maps,
            "model.skip": skip,
        }
    )
    assert count(shaped(config, points)) == unet_by_hand(points, channels, stride, skip)
    output = output_of(config, points)
    assert (output.shape, output.dtype) == ((2, *maps, points), jnp.float32)


@pytest.mark.parametrize("points", [1, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_what_its_output_attribute_says(name, channels, points):
    settings = {"model.name": name, "data.channels": channels, **MODEL_SETTINGS[name]}
    config = make_config(**settings)
    output = output_of(config, points)
    expected = {
        "heatmaps": (2, *config.targets.heatmap_size, points),
        "coordinates": (2, points, 2),
    }[shaped(config).output]
    assert (output.shape, output.dtype) == (expected, jnp.float32)


@pytest.mark.parametrize("name", MODELS)
def test_prediction_is_deterministic_and_each_picture_stands_alone(name):
    predict, _, weights = built(name)
    images = picture(name=name)
    once, again = (np.asarray(predict(weights, images)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    others = np.asarray(predict(weights, images.at[1:].set(picture(3, seed=9, name=name))))
    np.testing.assert_allclose(others[0], once[0], rtol=1e-5, atol=1e-6)
    assert np.abs(others[1:] - once[1:]).max() > 1e-4


@pytest.mark.parametrize("name", ["unet", "regression"])
def test_training_mode_moves_the_statistics_and_minds_the_batch(name):
    predict, train, weights = built(name)
    parts = (weights["params"], weights["frozen"], weights["stats"])
    output, stats = train(*parts, picture(), jax.random.key(0))
    assert jax.tree.structure(stats) == jax.tree.structure(weights["stats"])
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), stats, weights["stats"])
    assert all(jax.tree.leaves(moved))
    assert np.abs(output - predict(weights, picture())).max() > 1e-4


def test_running_statistics_keep_nine_tenths_of_the_old():
    _, train, weights = built("unet")
    layer = weights["params"]["encoder"]["convs"][0]
    features = ops.plain_conv(picture(), layer["kernel"]) + layer["bias"]
    _, stats = train(weights["params"], {}, weights["stats"], picture(), jax.random.key(0))
    first = stats["encoder"]["norms"][0]
    mean, variance = features.mean((0, 1, 2)), features.var((0, 1, 2))
    np.testing.assert_allclose(first["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first["var"], 0.9 + 0.1 * variance, rtol=1e-4)


def test_dropout_follows_its_key_in_training_only():
    predict, train, weights = built("regression")
    parts = (weights["params"], weights["frozen"], weights["stats"], picture())
    first, same, other = (train(*parts, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-5
    assert np.all((first > 0) & (first < 1))
    np.testing.assert_array_equal(predict(weights, picture()), predict(weights, picture()))


def test_skips_carry_what_the_deepest_features_do_not_hold():
    predict, _, weights = built("unet")
    params = jax.tree.map(lambda a: a, weights["params"])  # a copy of the nesting
    deepest = params["encoder"]["convs"][3]
    deepest["kernel"] = jnp.zeros_like(deepest["kernel"])  # the same features for any picture
    first, second = (predict(weights | {"params": params}, picture(1, seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_computes_coarsely_and_keeps_weights_and_output_in_float32(name):
    predict, train, weights = built(name, "bfloat16")
    images = picture(name=name)
    output, stats = train(*weights.values(), images, jax.random.key(0))
    assert {a.dtype.name for a in jax.tree.leaves((weights, stats, output))} == {"float32"}
    fine = np.asarray(built(name)[0](built(name)[2], images))
    coarse = np.asarray(predict(weights, images))
    assert coarse.dtype == np.float32
    assert 1e-7 < np.abs(coarse - fine).max() < 0.05 * np.abs(fine).max()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model.name": "unett"}, r"model\.name='unett' is not known: did you mean 'unet'"),
        ({"data.image_size": (128, 120)}, r"\(128, 120\) does not suit model\.name='unet'.*by 16"),
        ({"model.name": "regression", "data.image_size": (40, 32)}, r"'regression': .*by 16"),
        ({"targets.heatmap_size": (16, 16)}, r"32×32, 64×64, 128×128; .*\(16, 16\) is none"),
        ({"targets.heatmap_size": (64, 32)}, r"\(64, 32\) is none of these"),
    ],
)
def test_sizes_and_names_that_do_not_suit_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        models.create(make_config(**overrides), 5, Rngs(0))


def test_every_output_has_a_loss():
    outputs = {
        shaped(make_config(**MODEL_SETTINGS[name], **{"model.name": name})).output
        for name in MODELS
    }
    kinds = {"coordinates" if x.trains == "coordinates" else "heatmaps" for x in LOSSES.values()}
    assert outputs <= kinds


# --- the operators ------------------------------------------------------------------------------

SHAPES = [  # input [B, H, W, C] and features
    ((2, 9, 11, 3), 5),
    ((3, 5, 13, 1), 2),
    ((1, 1, 1, 1), 1),
    ((2, 8, 8, 4), 3),  # the last size of the plain forward form
    ((2, 1, 70, 2), 1),
]
OPERATORS = {
    "conv_3x3": (ops.conv_3x3, ops.plain_conv, 3),
    "conv_transpose_4x4": (ops.conv_transpose_4x4, ops.plain_conv_transpose, 4),
}


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.array(rng.normal(size=shape), jnp.float32) for shape in shapes]


def assert_close(actual, expected, tolerance=1e-5):
    """Compares relative to the largest value, since sums of either sign cancel."""
    assert actual.shape == expected.shape
    error = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)).max()
    assert error <= tolerance * np.abs(expected).max()


def value_and_gradients(function):
    """Returns what maps (arguments…, cotangent) to the value and the gradients of all arguments."""

    def run(*given):
        *arguments, cotangent = given
        value, backward = jax.vjp(function, *arguments)
        return value, *backward(cotangent)

    return quick_jit(run)


# How far off results may be: in bfloat16 by one rounding, at the end.
PRECISIONS = [(jnp.float32, 1e-5), (jnp.bfloat16, 2**-8 + 1e-5)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("shape", "features"), SHAPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_equals_the_plain_form_in_value_and_gradients(
    name, shape, features, dtype, tolerance
):
    operator, plain, size = OPERATORS[name]
    x, kernel = arrays(shape, (size, size, shape[-1], features))
    (cotangent,) = arrays(jax.eval_shape(plain, x, kernel).shape, seed=1)
    narrow = [a.astype(dtype) for a in (x, kernel, cotangent)]
    exact = [a.astype(jnp.float32) for a in narrow]
    results = value_and_gradients(operator)(*narrow)
    for mine, reference in zip(results, value_and_gradients(plain)(*exact), strict=True):
        assert mine.dtype == dtype
        assert_close(mine, reference, tolerance)


@pytest.mark.parametrize("name", OPERATORS)
def test_bfloat16_is_multiplied_in_the_form_that_matrix_units_take(name):
    """XLA:CPU takes any other for float32, with conversions around it."""
    operator, plain, size = OPERATORS[name]
    x, kernel = (jnp.ones(s, jnp.bfloat16) for s in ((2, 16, 16, 4), (size, size, 4, 3)))
    cotangent = jnp.ones(jax.eval_shape(plain, x, kernel).shape, jnp.bfloat16)
    program = value_and_gradients(operator).lower(x, kernel, cotangent).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) == 3
    for line in products:
        assert "contracting_dims = [1] x [0]" in line
        assert re.search(r": \(tensor<\w+xbf16>, tensor<\w+xbf16>\) -> tensor<\w+xf32>", line)
    assert "stablehlo.convolution" not in program


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("biased", [True, False])
def test_linear_has_the_parameters_and_the_result_of_nnx(biased, dtype, tolerance):
    settings = {"use_bias": biased, "rngs": nnx.Rngs(0)}
    (x,) = arrays((2, 7, 5))
    x = x.astype(dtype)
    mine, plain = ops.Linear(5, 4, dtype=dtype, **settings), nnx.Linear(5, 4, **settings)
    for layer in (mine, plain):
        layer.kernel[...] = arrays((5, 4), seed=1)[0].astype(dtype).astype(jnp.float32)

    def value_and_gradient(layer, x):
        value, backward = nnx.jit(lambda layer, x: jax.vjp(layer, x))(layer, x)
        return value, backward(jnp.ones_like(value))[0]

    expected = value_and_gradient(plain, x.astype(jnp.float32))
    for actual, reference in zip(value_and_gradient(mine, x), expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, reference, tolerance)


@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_transposed_convolution_by_phases_is_the_plain_one(shape, features):
    x, kernel = arrays(shape, (4, 4, shape[-1], features))
    assert_close(ops._conv_transpose_by_phases(x, kernel), ops.plain_conv_transpose(x, kernel))


@pytest.mark.parametrize("name", OPERATORS)
def test_gradient_sums_in_float32_whatever_the_input(name):
    """In bfloat16 a sum over many pixels would stop growing at 256."""
    operator, _, size = OPERATORS[name]
    x, kernel = jnp.ones((4, 16, 16, 1), jnp.bfloat16), jnp.ones((size, size, 1, 1), jnp.bfloat16)

    @quick_jit
    def value_and_gradients(x, kernel):
        value, backward = jax.vjp(operator, x, kernel)
        return value, *backward(jnp.ones_like(value))

    value, dx, dkernel = value_and_gradients(x, kernel)
    assert {a.dtype for a in (value, dx, dkernel)} == {jnp.dtype("bfloat16")}
    assert float(dkernel[1, 1, 0, 0]) == 4 * 16 * 16


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_layer_has_the_parameters_and_the_result_of_nnx(kind):
    plain_layers = {
        "Conv": lambda: nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0)),
        "ConvTranspose": lambda: nnx.ConvTranspose(
            3, 5, (4, 4), strides=2, padding="SAME", rngs=nnx.Rngs(0)
        ),
    }

    @quick_jit
    def kernels_and_outputs(x, bias):
        mine = getattr(ops, kind)(3, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))
        plain = plain_layers[kind]()
        mine.bias[...] = plain.bias[...] = bias
        return (mine.kernel[...], plain.kernel[...]), (mine(x), plain(x))

    kernels, outputs = kernels_and_outputs(*arrays((2, 9, 12, 3), (5,)))
    np.testing.assert_array_equal(*kernels)
    assert_close(*outputs)


@pytest.mark.parametrize("form", [ops.plain_conv_transpose, ops._conv_transpose_by_phases])
def test_transposed_convolution_is_pytorchs_with_the_kernel_mirrored(form):
    """ConvTranspose2d(4, stride=2, padding=1) adds x[i]·w[p] to y[2i + p - 1]."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(9, 10)), rng.normal(size=(4, 4))
    y = np.zeros((18, 20))
    for i, j, p, q in np.ndindex(9, 10, 4, 4):
        row, column = 2 * i + p - 1, 2 * j + q - 1
        if 0 <= row < 18 and 0 <= column < 20:
            y[row, column] += x[i, j] * w[p, q]
    mine = form(jnp.array(x)[None, ..., None], jnp.array(w[::-1, ::-1])[..., None, None])
    assert_close(mine[0, ..., 0], y)


def test_transposed_convolution_of_one_row_by_hand():
    """A single 1 in the middle of a row spreads the mirrored kernel over four pixels."""
    kernel = jnp.zeros((4, 4, 1, 1)).at[1, :, 0, 0].set(jnp.array([1.0, 2.0, 3.0, 4.0]))
    x = jnp.array([0.0, 1.0, 0.0])[None, None, :, None]
    y = ops.conv_transpose_4x4(x, kernel)  # [1, 2, 6, 1]
    np.testing.assert_array_equal(y[0, 1, :, 0], [0, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(y[0, 0, :, 0], np.zeros(6))


def rounded(shape, seed=0):
    """After ReLU and rounding most windows hold ties, many of them of zeros."""
    (x,) = arrays(shape, seed=seed)
    return nnx.relu(jnp.round(x * 1.5))


@pytest.mark.parametrize("shape", [(2, 8, 12, 3), (1, 2, 2, 1), (3, 6, 2, 1)])
def test_max_pool_and_its_gradient_are_xlas_bit_for_bit_also_at_ties(shape):
    x = rounded(shape)
    (cotangent,) = arrays((shape[0], shape[1] // 2, shape[2] // 2, shape[3]), seed=1)

    @quick_jit
    def values_and_gradients(x, cotangent):
        pools = (ops.max_pool_2x2, ops._max_of_quarters, ops.plain_max_pool)
        value, backward = zip(*(jax.vjp(pool, x) for pool in pools), strict=True)
        return value, backward[0](cotangent)[0], backward[2](cotangent)[0]

    values, gradient, plain_gradient = values_and_gradients(x, cotangent)
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(values[1], values[2])
    np.testing.assert_array_equal(gradient, plain_gradient)


def test_a_tie_gives_the_whole_gradient_to_the_first_in_row_order():
    x = jnp.array([[0.0, 7.0], [7.0, 7.0]])[None, ..., None]
    gradient = jax.grad(lambda x: ops.max_pool_2x2(x).sum())(x)
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 1], [0, 0]])


@pytest.mark.parametrize("part", ["value", "gradient"])
def test_accelerators_keep_the_plain_operators(part):
    """What is lowered for CUDA is XLA's own pooling, which the CPU form does without."""
    function, operation = {
        "value": (ops.max_pool_2x2, "reduce_window"),
        "gradient": (jax.grad(lambda x: ops.max_pool_2x2(x).sum()), "select_and_scatter"),
    }[part]
    traced = jax.jit(function).trace(jnp.ones((1, 4, 4, 1)))
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert operation in texts["cuda"]
    assert operation not in texts["cpu"]


# --- normalisation ------------------------------------------------------------------------------


def plain_norm_relu(x, scale, bias, pool):
    """The definition, differentiated by JAX itself."""
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = nnx.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)
    return ops.plain_max_pool(y) if pool else y


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("shape", [(3, 6, 8, 5), (2, 2, 2, 1)])
def test_norm_relu_equals_its_definition_in_value_and_gradients(shape, pool, dtype, tolerance):
    x, scale, bias = arrays(shape, shape[-1:], shape[-1:])  # scales of either sign
    outputs = (shape[0], shape[1] // 2, shape[2] // 2, shape[3]) if pool else shape
    (cotangent,) = arrays(outputs, seed=1)
    x, cotangent = x.astype(dtype), cotangent.astype(dtype)
    wide, wide_cotangent = (a.astype(jnp.float32) for a in (x, cotangent))
    mine = value_and_gradients(lambda *a: norm.norm_relu(*a, pool)[0])
    plain = value_and_gradients(lambda *a: plain_norm_relu(*a, pool))
    results = mine(x, scale, bias, cotangent)
    assert [a.dtype for a in results] == [dtype, dtype, jnp.float32, jnp.float32]
    for found, expected in zip(results, plain(wide, scale, bias, wide_cotangent), strict=True):
        assert_close(found, expected, 1e-4 + tolerance)  # differences of large sums


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_norm_relu_is_nnx_batch_norm_in_parameters_statistics_and_result(pool, training):
    x, *values = arrays((3, 4, 6, 4), (4,), (4,), (4,), (4,))

    @quick_jit
    def states_and_outputs(x, values):
        layers = (
            norm.NormRelu(4, pool=pool, dtype=jnp.float32, rngs=nnx.Rngs(0)),
            nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0)),
        )
        for layer in layers:
            for name, value in zip(("scale", "bias", "mean", "var"), values, strict=True):
                getattr(layer, name)[...] = value
            layer.use_running_average = not training
        mine, plain = (layer(2 + 3 * x) for layer in layers)
        plain = nnx.relu(plain)
        outputs = mine, ops.plain_max_pool(plain) if pool else plain
        return [nnx.to_pure_dict(nnx.state(layer)) for layer in layers], outputs

    states, outputs = states_and_outputs(x, [*values[:3], 1 + values[3] ** 2])
    assert_close(*outputs)
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert_close(value, states[1][name])
    assert training == bool(np.any(states[0]["mean"] != values[2]))


@pytest.mark.parametrize("training", [True, False])
def test_a_shift_is_a_bias_that_is_added_before(training):
    x, shift, *values = arrays((3, 4, 6, 4), (4,), (4,), (4,), (4,), (4,))

    @quick_jit
    def both(x, shift, values):
        found = []
        for arguments in ((x, shift), (x + shift,)):
            layer = norm.NormRelu(4, pool=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
            for name, value in zip(("scale", "bias", "mean", "var"), values, strict=True):
                getattr(layer, name)[...] = value
            layer.use_running_average = not training
            found.append((layer(*arguments), nnx.to_pure_dict(nnx.state(layer))))
        return found

    (y, state), (expected, plain) = both(x, 3 + shift, [*values[:3], 1 + values[3] ** 2])
    assert_close(y, expected)
    for name, value in plain.items():
        assert_close(state[name], value)


def test_norm_relu_at_ties_sends_the_gradient_to_the_first_in_row_order():
    x = jnp.array([[0.0, 7.0], [7.0, 7.0], [1.0, 2.0], [3.0, 4.0]])[None, ..., None]
    for sign, expected in ((1, [[0, 1], [0, 0], [0, 0], [0, 1]]), (-1, [[1, 0], [0, 0]] * 2)):
        largest = norm.largest_after(x, jnp.full(1, sign))
        chosen = ops.to_first_equal(ops.blocks_of(x), largest, jnp.ones((1, 2, 1, 1)))
        np.testing.assert_array_equal(chosen.reshape(4, 2), expected)


# --- the first stage ----------------------------------------------------------------------------


def by_definition(x, kernel, scale, bias):
    """The first stage, differentiated by JAX itself."""
    return plain_norm_relu(ops.plain_conv(x, kernel), scale, bias, pool=True)


def first_stages(x, kernel, scale, bias):
    """Returns (value, gradients and statistics) of the operator, and by its definition.

    The latter in float32, of the same numbers.
    """
    shape = (x.shape[0], x.shape[1] // 2, x.shape[2] // 2, kernel.shape[-1])
    (cotangent,) = (a.astype(x.dtype) for a in arrays(shape, seed=1))

    mine = value_and_gradients(lambda *a: stem.conv_norm_relu_pool(*a)[0])
    _, *statistics = quick_jit(stem.conv_norm_relu_pool)(x, kernel, scale, bias)
    found = (*mine(x, kernel, scale, bias, cotangent), *statistics)
    x, kernel, cotangent = (a.astype(jnp.float32) for a in (x, kernel, cotangent))
    conv = ops.plain_conv(x, kernel)
    expected = value_and_gradients(by_definition)(x, kernel, scale, bias, cotangent)
    return found, (*expected, conv.mean((0, 1, 2)), conv.var((0, 1, 2)))


@pytest.mark.parametrize(  # in bfloat16 what is convolved is rounded, and the result again
    ("dtype", "tolerance"), [(jnp.float32, 1e-4), (jnp.bfloat16, 2 * 2**-8)]
)
@pytest.mark.parametrize("shape", [(3, 8, 12, 1), (2, 6, 4, 3), (1, 2, 2, 1)])
def test_first_stage_equals_its_definition_in_value_statistics_and_gradients(
    shape, dtype, tolerance
):
    x, kernel, scale, bias = arrays(shape, (3, 3, shape[-1], 5), (5,), (5,))
    x, kernel = (1 + x).astype(dtype), kernel.astype(dtype)  # paper is not grey on average
    for found, expected in zip(*first_stages(x, kernel, scale, bias), strict=True):
        assert_close(found, expected, tolerance)  # differences of large sums


def test_first_stage_at_ties_sends_the_gradient_to_the_first_in_row_order():
    """Of whole numbers every sum is exact, so that blocks hold true ties."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.integers(0, 2, (3, 8, 12, 1)), jnp.float32)
    kernel = jnp.array(rng.integers(-1, 2, (3, 3, 1, 5)), jnp.float32)
    blocks = ops.quarters(ops.plain_conv(x, kernel))
    largest = functools.reduce(jnp.maximum, blocks)
    assert np.mean(sum(block == largest for block in blocks) > 1) > 0.3
    _, _, scale, bias = arrays((1,), (1,), (5,), (5,))
    for found, expected in zip(*first_stages(x, kernel, scale, bias), strict=True):
        assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_first_stage_is_the_layers_that_it_joins(channels, training):
    x, *values = arrays((3, 4, 6, channels), (4,), (4,), (4,), (4,), (4,))

    @quick_jit
    def states_and_outputs(x, values):
        found = []
        for apply in (stem.apply, lambda conv, after, x: after.after(conv, x)):
            conv = ops.Conv(channels, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
            after = norm.NormRelu(4, pool=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
            places = (after.scale, after.bias, after.mean, after.var, conv.bias)
            for place, value in zip(places, values, strict=True):
                place[...] = value
            after.use_running_average = not training
            found.append((apply(conv, after, x), after.mean[...], after.var[...]))
        return found

    values[3] = 1 + values[3] ** 2
    for mine, plain in zip(*states_and_outputs(x, values), strict=True):
        assert_close(mine, plain)


def test_first_stage_never_makes_its_largest_array():
    shapes = [
        jax.ShapeDtypeStruct(s, "float32") for s in ((2, 16, 16, 1), (3, 3, 1, 7), (7,), (7,))
    ]
    step = jax.grad(lambda kernel, x, *a: stem.conv_norm_relu_pool(x, kernel, *a)[0].sum())
    program = jax.jit(step).lower(shapes[1], shapes[0], *shapes[2:]).compile().as_text()
    assert "f32[2,8,8,7]" in program
    assert "= f32[2,16,16,7]" not in program.split("ENTRY")[1]


def test_accelerators_keep_the_convolution_for_the_way_back():
    function = jax.grad(
        lambda kernel, x: stem.conv_norm_relu_pool(x, kernel, *jnp.ones((2, 7)))[0].sum()
    )
    traced = jax.jit(function).trace(jnp.ones((3, 3, 1, 7)), jnp.ones((2, 16, 16, 1)))
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")}
    assert texts["cuda"].count("stablehlo.convolution") == 2  # one there, one back
    assert texts["cuda"].count("stablehlo.while") == 0


def test_a_block_is_chosen_from_before_its_pixels_are_written_over():
    """A result that took the place of x would be compared with itself."""
    x, kernel = arrays((4, 32, 48, 3), (3, 3, 3, 8))
    scale, bias, (cotangent,) = jnp.ones(8), jnp.zeros(8), arrays((4, 16, 24, 8), seed=1)
    gradients = [
        jax.jit(jax.grad(lambda x, f=f: (f(x) * cotangent).sum()))(x)
        for f in (
            lambda x: stem.conv_norm_relu_pool(x, kernel, scale, bias)[0],
            lambda x: by_definition(x, kernel, scale, bias),
        )
    ]
    assert_close(*gradients, 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_1x1_convolution_is_that_of_nnx_in_value_and_gradients(dtype, tolerance):
    x, cotangent = (a.astype(dtype) for a in arrays((2, 4, 6, 3), (2, 4, 6, 2)))
    kernel = arrays((1, 1, 3, 2), seed=1)[0].astype(dtype).astype(jnp.float32)

    def results(layer, x, cotangent):  # the bias is zero, and rounds nothing a second time
        layer.kernel[...] = kernel
        graph, weights = nnx.split(layer)
        apply = value_and_gradients(lambda weights, x: nnx.merge(graph, weights)(x))
        value, gradients, dx = apply(weights, x, cotangent)
        return value, dx, gradients["kernel"][...]

    mine = results(ops.Conv1x1(3, 2, dtype=dtype, rngs=nnx.Rngs(0)), x, cotangent)
    exact = (a.astype(jnp.float32) for a in (x, cotangent))
    for found, expected in zip(
        mine, results(nnx.Conv(3, 2, (1, 1), rngs=nnx.Rngs(0)), *exact), strict=True
    ):
        assert_close(found, expected, tolerance)


def test_joined_channels_lie_side_by_side():
    x, y = arrays((2, 4, 6, 3), (2, 4, 6, 5))
    np.testing.assert_array_equal(ops.join_channels(x, y), jnp.concatenate([x, y], axis=-1))

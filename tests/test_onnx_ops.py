"""Every operator that the ONNX export knows, run by onnxruntime and by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from heatmap import decoding
from heatmap.errors import UserError
from heatmap.models import ops
from tests.helpers import make_config, quick_jit

pytest.importorskip("onnxruntime")  # of the extra `export`

import onnxruntime

from heatmap.export import onnx_graph, onnx_ops

X = np.random.default_rng(0).normal(size=(2, 6, 8, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(2, 6, 8, 4)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(4, 4, 4, 5)).astype(np.float32)


def compare(relation):
    return lambda x, y: relation(jnp.round(x), jnp.round(y)).astype(jnp.float32)


def both(operator):
    """Of two truths."""
    return lambda x, y: operator(x > 0, y > 0).astype(jnp.float32)


def at_peaks(x, y):
    flat = x.reshape(2, 48, 4)
    return jnp.take_along_axis(flat, jnp.argmax(y.reshape(2, 48, 4), axis=1)[:, None], axis=1)


# For each primitive a function of X and Y that cannot do without it.
CASES = {
    "abs": lambda x, y: jnp.abs(x),
    "add": lambda x, y: x + y,
    "and": both(jnp.logical_and),
    "argmax": lambda x, y: jnp.argmax(x, axis=2).astype(jnp.float32),
    "broadcast_in_dim": lambda x, y: jnp.broadcast_to(x[:, :, None], (2, 6, 3, 8, 4)),
    "clamp": lambda x, y: lax.clamp(jnp.float32(-0.5), x, jnp.float32(0.7)),
    "concatenate": lambda x, y: jnp.concatenate([x, y], axis=2),
    "conv_general_dilated": lambda x, y: ops.plain_conv(x, KERNEL[:3, :3]),
    "convert_element_type": lambda x, y: x.astype(jnp.int32).astype(jnp.float32),
    "copy": lambda x, y: jnp.array(x),
    "div": lambda x, y: x / (2 + jnp.abs(y)),
    "dot_general": lambda x, y: jnp.einsum("bhwc,bhvc->bhwv", x, y),
    "eq": compare(jnp.equal),
    "erf": lambda x, y: lax.erf(x),
    "erfc": lambda x, y: nnx.gelu(x, approximate=False),
    "exp": lambda x, y: jnp.exp(x),
    "floor": lambda x, y: jnp.floor(x),
    "gather": at_peaks,
    "ge": compare(jnp.greater_equal),
    "gt": compare(jnp.greater),
    "integer_pow": lambda x, y: x**3 + (2 + jnp.abs(y)) ** -2,
    "le": compare(jnp.less_equal),
    "log": lambda x, y: jnp.log(jnp.abs(x) + 0.1),
    "logistic": lambda x, y: nnx.sigmoid(x),
    "lt": compare(jnp.less),
    "max": lambda x, y: jnp.maximum(x, y),
    "min": lambda x, y: jnp.minimum(x, y),
    "mul": lambda x, y: x * y,
    "ne": compare(jnp.not_equal),
    "neg": lambda x, y: -x,
    "not": lambda x, y: jnp.logical_not(x > y).astype(jnp.float32),
    "or": both(jnp.logical_or),
    "pad": lambda x, y: jnp.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)), constant_values=7),
    "pow": lambda x, y: jnp.abs(x) ** y,
    "reduce_max": lambda x, y: x.max(axis=(1, 2)),
    "reduce_min": lambda x, y: x.min(axis=(1, 3)),
    "reduce_sum": lambda x, y: x.sum(axis=(1, 2)),
    "reduce_window_max": lambda x, y: ops.plain_max_pool(x),
    "rem": lambda x, y: (jnp.argmax(x, axis=2) % 3).astype(jnp.float32),
    "reshape": lambda x, y: x.reshape(12, -1),
    "round": lambda x, y: jnp.round(2 * jnp.round(x)) / 2 + jnp.round(jnp.round(y) / 2),
    "rsqrt": lambda x, y: lax.rsqrt(jnp.abs(x) + 0.1),
    "select_n": lambda x, y: jnp.where(x > 0, x, y),
    "sign": lambda x, y: jnp.sign(jnp.round(x)),
    "slice": lambda x, y: x[:, 1:5:2, 3:],
    "split": lambda x, y: jnp.split(x, [1, 3], axis=-1)[1],
    "sqrt": lambda x, y: jnp.sqrt(jnp.abs(x)),
    "square": lambda x, y: jnp.square(x),
    "squeeze": lambda x, y: lax.squeeze(x[:, 2:3], (1,)),
    "stack": lambda x, y: jnp.stack([x, y], axis=3),
    "stop_gradient": lambda x, y: lax.stop_gradient(x) * 1.0,
    "sub": lambda x, y: x - y,
    "tanh": lambda x, y: jnp.tanh(x),
    "transpose": lambda x, y: x.transpose(3, 0, 2, 1),
}


def primitives(traced):
    """The names of all primitives of a Jaxpr, those of the functions that it calls included."""
    found = set()
    for equation in traced.eqns:
        found.add(equation.primitive.name)
        for value in equation.params.values():
            called = getattr(value, "jaxpr", value)
            if hasattr(called, "eqns"):
                found |= primitives(called)
    return found


def converted(function, *arrays):
    """Runs a function by onnxruntime."""
    graph = onnx_graph.Graph()
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*arrays)
    inputs = {f"input{i}": (a.dtype, a.shape) for i, a in enumerate(arrays)}
    (value,) = onnx_ops.convert(graph, traced.jaxpr, traced.consts, list(inputs))
    model = graph.finish(inputs, {"output": (value, shape.shape)})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, dict(zip(inputs, arrays, strict=True)))[0]


def test_every_operator_is_tested():
    assert set(CASES) == set(onnx_ops.OPERATORS)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_does_what_jax_does(name):
    function = CASES[name]
    if name not in primitives(jax.make_jaxpr(function)(X, Y).jaxpr):
        pytest.skip("this version of JAX has no such primitive")
    np.testing.assert_allclose(
        converted(function, X, Y), quick_jit(function)(X, Y), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ops.conv_transpose_4x4(x, KERNEL),
        lambda x, y: lax.conv_general_dilated(
            x, KERNEL, (2, 3), ((1, 2), (0, 1)), (1, 1), (1, 2), ("NHWC", "HWIO", "NHWC")
        ),
        lambda x, y: ops.max_pool_2x2(x),
        lambda x, y: nnx.max_pool(x, (3, 2), strides=(2, 1), padding="SAME"),
        lambda x, y: jnp.einsum("bhwc,kc->bkhw", x, KERNEL[0, 0].T),
        lambda x, y: jax.nn.dot_product_attention(x, y, y),
        lambda x, y: jax.image.resize(x, (2, 15, 16, 4), "bilinear"),
        lambda x, y: jnp.broadcast_to(jnp.float32(2), (3, 2**16)) * x[0, 0, 0, 0],
        lambda x, y: jax.checkpoint(jnp.sin)(jnp.float32(2)) * x,
    ],
)  # fmt: skip
def test_operators_with_settings(function):
    expected = quick_jit(function)(X, Y)
    np.testing.assert_allclose(converted(function, X, Y), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("name", sorted(set(decoding.DECODERS) - {"coordinates"}))
def test_every_decoder(name, loss):
    settings = {"decoder.name": name, "decoder.beta": 20.0, "loss.name": loss}
    config = make_config(**settings, **{"targets.heatmap_size": (6, 8), "decoder.force": True})
    for output in ("keypoints", "score", "entropy"):

        def read(maps, output=output):
            return getattr(decoding.decode(config, maps), output)

        np.testing.assert_allclose(converted(read, X), quick_jit(read)(X), rtol=1e-5, atol=1e-4)


def test_equal_constants_are_stored_once():
    graph = onnx_graph.Graph()
    traced = jax.make_jaxpr(lambda x: (x @ KERNEL[0, 0] @ KERNEL[0, 0].T) @ jnp.array(KERNEL[0, 0]))
    traced = traced(X[0, 0])
    onnx_ops.convert(graph, traced.jaxpr, traced.consts, ["x"])
    assert len([t for t in graph.initialisers if sorted(t.dims) == [4, 5]]) == 2


def test_a_large_array_of_one_value_is_not_stored():
    graph = onnx_graph.Graph()
    traced = jax.make_jaxpr(lambda x: jnp.zeros((300, 300)) + x)(jnp.float32(1))
    onnx_ops.convert(graph, traced.jaxpr, traced.consts, ["x"])
    assert all(np.prod(t.dims) < 10 for t in graph.initialisers)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: jnp.cumsum(x, axis=0), "cumsum"),
        (lambda x: jnp.take(x, jnp.argmax(x, axis=0), axis=0, mode="clip"), "single numbers"),
        (lambda x: lax.pad(x, jnp.float32(0), ((0, 0, 1), (0, 0, 0))), "between pixels"),
    ],
)
def test_what_is_not_known_is_said(function, word):
    with pytest.raises(UserError, match=word):
        converted(function, X[0, 0])

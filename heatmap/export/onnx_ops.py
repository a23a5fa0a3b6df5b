"""From JAX's operators to ONNX's: each equation of a traced function becomes a node or a few.

What follows from constants alone is computed by JAX now. To support another primitive, give it a
line in OPERATORS: a function (graph, equation, *values) -> value, whose values are names in the
graph or arrays that are known.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal
from onnx import helper

from heatmap.errors import UserError
from heatmap.export.onnx_graph import Graph, Value

_LARGE = 2**16  # numbers; a constant of so many is rather expanded in the runtime than stored
# Primitives that call a function, and the parameter in which it is.
_CALLED = {
    "jit": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def convert(graph: Graph, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]):
    """Adds a traced function to a graph.

    Args:
      graph: to add to.
      jaxpr: from `jax.make_jaxpr`, its `.jaxpr`.
      constants: its `.consts`.
      inputs: one for each argument.

    Returns:
      A list of its results.

    Raises:
      UserError: if a primitive has no operator here.
    """
    values: dict[Any, Value] = {}

    def read(atom) -> Value:
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

    arrays = [np.asarray(constant) for constant in constants]
    for variable, value in zip(
        (*jaxpr.constvars, *jaxpr.invars), (*arrays, *inputs), strict=True
    ):
        values[variable] = value
    for equation in jaxpr.eqns:
        results = _convert_equation(graph, equation, [read(atom) for atom in equation.invars])
        for variable, value in zip(equation.outvars, results, strict=True):
            values[variable] = value
    return [read(atom) for atom in jaxpr.outvars]


def _convert_equation(graph: Graph, equation, values: list[Value]) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":  # the operators that are for no platform in particular
        return [np.int32(len(params["platforms"]) - 1)]
    if name == "cond" and isinstance(values[0], np.ndarray | np.generic):
        called = params["branches"][int(values[0])]
        return convert(graph, called.jaxpr, called.consts, values[1:])
    if name in _CALLED:
        called = params[_CALLED[name]]
        inner = getattr(called, "jaxpr", called)  # open or closed
        return convert(graph, inner, getattr(called, "consts", ()), values)
    known = not any(isinstance(value, str) for value in values)
    grows = name == "broadcast_in_dim" and equation.outvars[0].aval.size > _LARGE
    if known and not grows:
        found = equation.primitive.bind(*values, **params)
        return [np.asarray(f) for f in (found if equation.primitive.multiple_results else [found])]
    if name not in OPERATORS:
        raise UserError(
            f"The ONNX export has no operator for JAX's {name!r}, which this model needs: export "
            "--format=stablehlo or savedmodel, or add it to heatmap/export/onnx_ops.py."
        )
    found = OPERATORS[name](graph, equation, *values)
    return found if equation.primitive.multiple_results else [found]


def _plain(operator: str, **attributes) -> Callable:
    """Says that an operator of ONNX is the primitive."""

    def add(graph, equation, *values):
        return graph.add(operator, *values, **attributes)

    return add


def _not_equal(graph, equation, first, second):
    return graph.add("Not", graph.add("Equal", first, second))


def _rsqrt(graph, equation, x):
    return graph.add("Reciprocal", graph.add("Sqrt", x))


def _erfc(graph, equation, x):
    return graph.add("Sub", np.float32(1), graph.add("Erf", x))


def _square(graph, equation, x):
    return graph.add("Mul", x, x)


def _integer_pow(graph, equation, x):
    power = functools.reduce(lambda y, _: graph.add("Mul", y, x), range(abs(_exponent(equation)) - 1), x)
    return power if _exponent(equation) > 0 else graph.add("Reciprocal", power)


def _exponent(equation) -> int:
    return equation.params["y"]


def _clamp(graph, equation, low, x, high):
    return graph.add("Min", graph.add("Max", x, low), high)


def _select(graph, equation, which, *cases):
    first, second = cases  # more only where `which` is a number
    return graph.add("Where", which, second, first)


def _cast(graph, equation, x):
    return graph.add("Cast", x, to=_type(equation.params["new_dtype"]))


def _type(dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _reshape(graph, equation, x):
    return _shaped(graph, x, equation.outvars[0].aval.shape)


def _shaped(graph, x: Value, shape) -> Value:
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return graph.add("Reshape", x, np.array(shape, np.int64))


def _transpose(graph, equation, x):
    return _permuted(graph, x, equation.params["permutation"])


def _permuted(graph, x: Value, order) -> Value:
    if isinstance(x, np.ndarray):
        return x.transpose(order)
    return graph.add("Transpose", x, perm=list(order))


def _broadcast(graph, equation, x):
    shape = equation.params["shape"]
    within = equation.params["broadcast_dimensions"]
    lengths = equation.invars[0].aval.shape
    spread = [1] * len(shape)
    for place, length in zip(within, lengths, strict=True):
        spread[place] = length
    return graph.add("Expand", _shaped(graph, x, spread), np.array(shape, np.int64))


def _concatenate(graph, equation, *parts):
    return graph.add("Concat", *parts, axis=equation.params["dimension"])


def _stack(graph, equation, *parts):
    axis = equation.params["axis"]
    shape = list(equation.invars[0].aval.shape)
    shape.insert(axis, 1)
    return graph.add("Concat", *(_shaped(graph, part, shape) for part in parts), axis=axis)


def _slice(graph, equation, x):
    params = equation.params
    bounds = [params["start_indices"], params["limit_indices"]]
    places = range(len(bounds[0]))
    steps = params["strides"] or [1] * len(places)
    return graph.add("Slice", x, *(np.array(v, np.int64) for v in (*bounds, places, steps)))


def _split(graph, equation, x):
    sizes = np.array(equation.params["sizes"], np.int64)
    found = graph.add("Split", x, sizes, outputs=len(sizes), axis=equation.params["axis"])
    return [found] if len(sizes) == 1 else found


def _pad(graph, equation, x, value):
    low, high, inside = zip(*equation.params["padding_config"], strict=True)
    if any(inside) or min(*low, *high) < 0:
        raise UserError("The ONNX export knows no padding between pixels, and none that cuts.")
    return graph.add("Pad", x, np.array([*low, *high], np.int64), value)


def _reduce(operator: str) -> Callable:
    def add(graph, equation, x):
        axes = np.array(equation.params["axes"], np.int64)
        return graph.add(operator, x, axes, keepdims=0)

    return add


def _argmax(graph, equation, x):
    (axis,) = equation.params["axes"]
    found = graph.add("ArgMax", x, axis=axis, keepdims=0)
    return graph.add("Cast", found, to=_type(equation.params["index_dtype"]))


def _dot(graph, equation, left, right):
    """Brings both sides to [batch…, rows, columns], multiplies, and takes rows and columns apart."""
    (from_left, from_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    shapes = [variable.aval.shape for variable in equation.invars]
    free = [
        [i for i in range(len(shape)) if i not in (*summed, *batch)]
        for shape, summed, batch in zip(
            shapes, (from_left, from_right), (batch_left, batch_right), strict=True
        )
    ]
    batch = [shapes[0][i] for i in batch_left]
    rows, columns = (
        int(np.prod([shape[i] for i in some])) for shape, some in zip(shapes, free, strict=True)
    )
    left = _permuted(graph, left, (*batch_left, *free[0], *from_left))
    right = _permuted(graph, right, (*batch_right, *from_right, *free[1]))
    product = graph.add(
        "MatMul", _shaped(graph, left, (*batch, rows, -1)), _shaped(graph, right, (*batch, -1, columns))
    )
    return _shaped(graph, product, equation.outvars[0].aval.shape)


def _convolve(graph, equation, x, kernel):
    """Convolves as ONNX lays arrays out; one with gaps between pixels is a transposed one."""
    params = equation.params
    numbers, pads = params["dimension_numbers"], np.array(params["padding"])
    x = _permuted(graph, x, numbers.lhs_spec)  # [B, C, H, W]
    kernel = _permuted(graph, kernel, numbers.rhs_spec)  # [F, C, h, w]
    settings = {"group": params["feature_group_count"], "dilations": list(params["rhs_dilation"])}
    if set(params["lhs_dilation"]) == {1}:
        settings |= {"strides": list(params["window_strides"]), "pads": pads.T.ravel().tolist()}
        y = graph.add("Conv", x, kernel, **settings)
    else:
        plain = set(params["window_strides"]) | {settings["group"]} | set(settings["dilations"])
        if plain != {1} or not isinstance(kernel, np.ndarray):
            raise UserError("The ONNX export knows transposed convolutions without options only.")
        cut = np.array(kernel.shape[2:])[:, None] - 1 - pads
        kernel = kernel[:, :, ::-1, ::-1].swapaxes(0, 1)
        y = graph.add(
            "ConvTranspose",
            x,
            kernel,
            strides=list(params["lhs_dilation"]),
            pads=cut.T.ravel().tolist(),
        )
    return _permuted(graph, y, np.argsort(numbers.out_spec).tolist())


def _max_pool(graph, equation, x):
    params = equation.params
    window, strides = params["window_dimensions"], params["window_strides"]
    x = _permuted(graph, x, (0, 3, 1, 2))
    y = graph.add(
        "MaxPool",
        x,
        kernel_shape=list(window[1:3]),
        strides=list(strides[1:3]),
        pads=np.array(params["padding"])[1:3].T.ravel().tolist(),
    )
    return _permuted(graph, y, (0, 2, 3, 1))


def _gather(graph, equation, x, indices):
    """Reads single numbers at places that lie inside, as `take_along_axis` asks for them."""
    numbers = equation.params["dimension_numbers"]
    if set(equation.params["slice_sizes"]) != {1}:
        raise UserError("The ONNX export can gather single numbers only.")
    shape = equation.invars[1].aval.shape  # [..., columns]
    rank = len(equation.params["slice_sizes"])
    indices = graph.add("Cast", indices, to=_type(np.int64))
    columns: list[Value] = [np.zeros((*shape[:-1], 1), np.int64)] * rank
    for column, place in enumerate(numbers.start_index_map):
        columns[place] = _shaped(
            graph, graph.add("Gather", indices, np.int64(column), axis=-1), (*shape[:-1], 1)
        )
    for place, along in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        columns[place] = np.indices((*shape[:-1], 1))[along]
    found = graph.add("GatherND", x, graph.add("Concat", *columns, axis=-1))
    return _shaped(graph, found, equation.outvars[0].aval.shape)


OPERATORS: dict[str, Callable] = {
    "abs": _plain("Abs"),
    "add": _plain("Add"),
    "and": _plain("And"),
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolve,
    "convert_element_type": _cast,
    "copy": _plain("Identity"),
    "div": _plain("Div"),
    "dot_general": _dot,
    "eq": _plain("Equal"),
    "erf": _plain("Erf"),
    "erfc": _erfc,
    "exp": _plain("Exp"),
    "floor": _plain("Floor"),
    "gather": _gather,
    "ge": _plain("GreaterOrEqual"),
    "gt": _plain("Greater"),
    "integer_pow": _integer_pow,
    "le": _plain("LessOrEqual"),
    "log": _plain("Log"),
    "logistic": _plain("Sigmoid"),
    "lt": _plain("Less"),
    "max": _plain("Max"),
    "min": _plain("Min"),
    "mul": _plain("Mul"),
    "ne": _not_equal,
    "neg": _plain("Neg"),
    "not": _plain("Not"),
    "or": _plain("Or"),
    "pad": _pad,
    "pow": _plain("Pow"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_window_max": _max_pool,
    "rem": _plain("Mod", fmod=1),
    "reshape": _reshape,
    "round": _plain("Round"),
    "rsqrt": _rsqrt,
    "select_n": _select,
    "sign": _plain("Sign"),
    "slice": _slice,
    "split": _split,
    "sqrt": _plain("Sqrt"),
    "square": _square,
    "squeeze": _reshape,
    "stop_gradient": _plain("Identity"),
    "stack": _stack,
    "sub": _plain("Sub"),
    "tanh": _plain("Tanh"),
    "transpose": _transpose,
}

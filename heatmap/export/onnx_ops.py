"""From JAX's operators to ONNX's: each equation of a traced function becomes a node or a few.

What follows from constants alone is computed by JAX now. To support another primitive, give it a
line in OPERATORS: a function (graph, equation, *values) -> value, whose values are names in the
graph or arrays that are known.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

from heatmap.errors import UserError
from heatmap.export import onnx_products
from heatmap.export.onnx_graph import Graph, Value

_LARGE = 2**16  # numbers; a constant of so many is rather spread out by the runtime than stored

# Primitives that call a function, and the parameter in which it is.
_CALLED = {
    "jit": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def convert(
    graph: Graph, traced: Any, constants: Sequence[Any], inputs: Sequence[Value]
) -> list[Value]:
    """Adds a traced function to a graph.

    Args:
      graph: to add to.
      traced: a Jaxpr.
      constants: the values of its `constvars`.
      inputs: one for each argument.

    Returns:
      Its results.

    Raises:
      UserError: if a primitive has no operator here.
    """
    arrays = [np.asarray(constant) for constant in constants]
    variables = (*traced.constvars, *traced.invars)
    values: dict[Any, Value] = dict(zip(variables, (*arrays, *inputs), strict=True))

    def read(atom: Any) -> Value:
        known = isinstance(atom, Literal)
        return np.asarray(atom.val, atom.aval.dtype) if known else values[atom]

    for equation in traced.eqns:
        found = _convert_equation(graph, equation, [read(atom) for atom in equation.invars])
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in traced.outvars]


def _convert_equation(graph: Graph, equation, values: list[Value]) -> list[Value]:
    primitive, params = equation.primitive, equation.params
    name, several = primitive.name, primitive.multiple_results
    if name == "platform_index":  # operators that are for no platform in particular come last
        return [np.array(len(params["platforms"]) - 1, np.int32)]
    called = params[_CALLED[name]] if name in _CALLED else None
    if name == "cond" and isinstance(values[0], np.ndarray):
        called = params["branches"][int(values.pop(0))]
    if called is not None:
        inside = getattr(called, "jaxpr", called)
        return convert(graph, inside, getattr(called, "consts", ()), values)
    known = not any(isinstance(value, str) for value in values)
    spreads = name == "broadcast_in_dim" and equation.outvars[0].aval.size > _LARGE
    if known and not spreads:
        found = primitive.bind(*values, **params)
        return [np.asarray(array) for array in (found if several else [found])]
    if name not in OPERATORS:
        raise UserError(
            f"The ONNX export has no operator for JAX's {name!r}, which this model needs: export "
            "with --format=stablehlo or savedmodel, or add it to heatmap/export/onnx_ops.py."
        )
    found = OPERATORS[name](graph, equation, *values)
    return found if several else [found]


def _plain(operator: str, **attributes) -> Callable:
    """Says that an operator of ONNX is the primitive."""

    def add(graph, equation, *values):
        del equation
        return graph.add(operator, *values, **attributes)

    return add


def _reduce(operator: str) -> Callable:
    def add(graph, equation, x):
        axes = np.array(equation.params["axes"], np.int64)
        return graph.add(operator, x, axes, keepdims=0)

    return add


def _argmax(graph, equation, x):
    (axis,) = equation.params["axes"]
    found = graph.add("ArgMax", x, axis=axis, keepdims=0)
    return graph.cast(found, equation.params["index_dtype"])


def _broadcast(graph, equation, x):
    shape = equation.params["shape"]
    lengths = [1] * len(shape)
    for place, length in zip(
        equation.params["broadcast_dimensions"], equation.invars[0].aval.shape, strict=True
    ):
        lengths[place] = length
    return graph.add("Expand", graph.reshape(x, lengths), np.array(shape, np.int64))


def _clamp(graph, equation, low, x, high):
    return graph.add("Min", graph.add("Max", x, low), high)


def _concatenate(graph, equation, *parts):
    return graph.add("Concat", *parts, axis=equation.params["dimension"])


def _convert_type(graph, equation, x):
    return graph.cast(x, equation.params["new_dtype"])


def _erfc(graph, equation, x):
    return graph.add("Sub", np.array(1, np.float32), graph.add("Erf", x))


def _integer_pow(graph, equation, x):
    return graph.add("Pow", x, np.array(equation.params["y"], equation.invars[0].aval.dtype))


def _not_equal(graph, equation, first, second):
    return graph.add("Not", graph.add("Equal", first, second))


def _pad(graph, equation, x, value):
    before, after, between = zip(*equation.params["padding_config"], strict=True)
    if any(between) or min(*before, *after) < 0:
        raise UserError("The ONNX export knows no padding between pixels, and none that cuts.")
    return graph.add("Pad", x, np.array([*before, *after], np.int64), value)


def _reshape(graph, equation, x):
    return graph.reshape(x, equation.outvars[0].aval.shape)


def _rsqrt(graph, equation, x):
    return graph.add("Reciprocal", graph.add("Sqrt", x))


def _select(graph, equation, which, *cases):
    first, second = cases  # there are more only where `which` is a number
    return graph.add("Where", which, second, first)


def _slice(graph, equation, x):
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or [1] * len(starts)
    bounds = (np.array(v, np.int64) for v in (starts, ends, range(len(starts)), steps))
    return graph.add("Slice", x, *bounds)


def _split(graph, equation, x):
    sizes = np.array(equation.params["sizes"], np.int64)
    return graph.add("Split", x, sizes, outputs=len(sizes), axis=equation.params["axis"])


def _square(graph, equation, x):
    return graph.add("Mul", x, x)


def _stack(graph, equation, *parts):
    axis, shape = equation.params["axis"], list(equation.invars[0].aval.shape)
    shape.insert(axis, 1)
    return graph.add("Concat", *(graph.reshape(part, shape) for part in parts), axis=axis)


def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params["permutation"])


OPERATORS: dict[str, Callable] = {
    "abs": _plain("Abs"),
    "add": _plain("Add"),
    "and": _plain("And"),
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast,
    "clamp": _clamp,
    "concatenate": _concatenate,
    "conv_general_dilated": onnx_products.convolve,
    "convert_element_type": _convert_type,
    "copy": _plain("Identity"),
    "div": _plain("Div"),
    "dot_general": onnx_products.dot,
    "eq": _plain("Equal"),
    "erf": _plain("Erf"),
    "erfc": _erfc,
    "exp": _plain("Exp"),
    "floor": _plain("Floor"),
    "gather": onnx_products.gather,
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
    "reduce_window_max": onnx_products.max_pool,
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
    "stack": _stack,
    "stop_gradient": _plain("Identity"),
    "sub": _plain("Sub"),
    "tanh": _plain("Tanh"),
    "transpose": _transpose,
}

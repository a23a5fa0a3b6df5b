"""An ONNX graph under construction: nodes one after the other, and numbers that it computes.

Values of the graph are names, as in the file; arrays that are known already become initialisers.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 18
# The newest that onnxruntime 1.18 (2024) reads; the onnx package would write its own newest.
_IR_VERSION = 10

Value = str | np.ndarray  # computed when the graph runs, or known now


class Graph:
    """Nodes and initialisers; every name is used once."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self._known: dict[Any, str] = {}
        self._count = 0

    def add(self, operator: str, *inputs: Value, outputs: int = 1, **attributes) -> Any:
        """Adds a node and returns the name of its output, or a list of names if there are several.

        Args:
          operator: of ONNX.
          *inputs: names, or arrays.
          outputs: how many.
          **attributes: of the operator.
        """
        names = [self.name(value) for value in inputs]
        made = [self._fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def name(self, value: Value) -> str:
        """Returns a name of the graph; an array is stored under one, equal ones once."""
        if isinstance(value, str):
            return value
        array = np.asarray(value)
        key = hashlib.sha256(array.tobytes()).digest(), array.shape, array.dtype.str
        if key not in self._known:
            self._known[key] = self._fresh()
            tensor = numpy_helper.from_array(np.ascontiguousarray(array), self._known[key])
            tensor.dims[:] = array.shape  # what is contiguous has an axis at least
            self.initialisers.append(tensor)
        return self._known[key]

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """Gives a value another shape; what is known is reshaped now."""
        if isinstance(value, str):
            return self.add("Reshape", value, np.array(shape, np.int64))
        return value.reshape(shape)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """Puts the axes of a value in another order; what is known is transposed now."""
        if isinstance(value, str):
            return self.add("Transpose", value, perm=list(order))
        return value.transpose(order)

    def cast(self, value: Value, dtype) -> str:
        """Gives a value another type."""
        return self.add("Cast", value, to=_type(dtype))

    def _fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def finish(
        self, inputs: dict[str, tuple[Any, tuple]], outputs: dict[str, tuple[Value, tuple]]
    ) -> onnx.ModelProto:
        """Makes a checked model.

        Args:
          inputs: type and shape by name; a length may be a word.
          outputs: value and shape of each float32 result by name.

        Returns:
          The model.
        """
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [self.name(value)], [name]))
        given = [
            helper.make_tensor_value_info(name, _type(dtype), shape)
            for name, (dtype, shape) in inputs.items()
        ]
        found = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, (_, shape) in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "heatmap", given, found, self.initialisers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="heatmap",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _type(dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that the graph computes, int64 while it is `whole`, else float64."""

    graph: Graph
    name: str
    whole: bool

    def cast(self, dtype) -> str:
        """Returns its value in another type."""
        return self.graph.add("Cast", self.name, to=_type(dtype))

    def _join(self, operator: str, *others: "Number | float", divide: bool = False) -> "Number":
        """Applies an operator to numbers, in float64 if one of them is not whole."""
        whole = not divide and all(_is_whole(other) for other in (self, *others))
        values = [_typed(other, whole) for other in (self, *others)]
        return Number(self.graph, self.graph.add(operator, *values), whole)

    def __add__(self, other):
        return self._join("Add", other)

    __radd__ = __add__

    def __mul__(self, other):
        return self._join("Mul", other)

    __rmul__ = __mul__

    def __sub__(self, other):
        return self._join("Sub", other)

    def __floordiv__(self, other):
        return self._join("Div", other)  # whole and positive here, so towards zero is down

    def __truediv__(self, other):
        return self._join("Div", other, divide=True)

    def __ge__(self, other):
        return self._join("GreaterOrEqual", other)


class Arithmetic:
    """What `heatmap.axes` needs of an array library, for numbers of a graph."""

    @staticmethod
    def maximum(first: Number, second: Number | float) -> Number:
        """Returns the larger one."""
        return first._join("Max", second)

    @staticmethod
    def floor(number: Number) -> Number:
        """Rounds down, in float64."""
        return number._join("Floor")

    @staticmethod
    def where(condition: Number, first, second) -> Number:
        """Returns `first` where the condition holds; both are whole."""
        values = [_typed(value, True) for value in (first, second)]
        return Number(condition.graph, condition.graph.add("Where", condition.name, *values), True)


def _is_whole(value) -> bool:
    return value.whole if isinstance(value, Number) else isinstance(value, int)


def _typed(value, whole: bool) -> Value:
    if not isinstance(value, Number):
        return np.array(value, np.int64 if whole else np.float64)
    return value.name if value.whole == whole else value.cast(np.int64 if whole else np.float64)

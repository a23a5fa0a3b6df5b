"""The operators of `onnx_ops` that need more than another name: products, windows and gathers.

JAX lays pictures out as [B, H, W, C] and ONNX as [B, C, H, W]. The transposes between the two
cancel when the runtime loads the model.
"""

import numpy as np

from heatmap.errors import UserError
from heatmap.export.onnx_graph import Graph, Value


def dot(graph: Graph, equation, left: Value, right: Value) -> Value:
    """Multiplies both sides as [batch…, rows, sum] and [batch…, sum, columns]."""
    (sum_left, sum_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    shape_left, shape_right = (variable.aval.shape for variable in equation.invars)
    rows = [i for i in range(len(shape_left)) if i not in (*sum_left, *batch_left)]
    columns = [i for i in range(len(shape_right)) if i not in (*sum_right, *batch_right)]
    batch = [shape_left[i] for i in batch_left]
    height, width = _count(shape_left, rows), _count(shape_right, columns)
    depth = _count(shape_left, sum_left)
    left = graph.transpose(left, (*batch_left, *rows, *sum_left))
    right = graph.transpose(right, (*batch_right, *sum_right, *columns))
    product = graph.add(
        "MatMul",
        graph.reshape(left, (*batch, height, depth)),
        graph.reshape(right, (*batch, depth, width)),
    )
    return graph.reshape(product, equation.outvars[0].aval.shape)


def _count(shape, axes) -> int:
    return int(np.prod([shape[i] for i in axes]))


def convolve(graph: Graph, equation, x: Value, kernel: Value) -> Value:
    """Convolves; where there are gaps between the pixels it is a transposed convolution.

    Raises:
      UserError: if a transposed one has strides, gaps or groups as well.
    """
    params = equation.params
    numbers, pads = params["dimension_numbers"], np.array(params["padding"])  # (before, after)
    strides, groups = list(params["window_strides"]), params["feature_group_count"]
    gaps = list(params["rhs_dilation"])
    x = graph.transpose(x, numbers.lhs_spec)
    kernel = graph.transpose(kernel, numbers.rhs_spec)  # [F, C, h, w]
    if set(params["lhs_dilation"]) == {1}:
        y = graph.add(
            "Conv", x, kernel, strides=strides, dilations=gaps, group=groups, pads=_flat(pads)
        )
    elif {*strides, *gaps, groups} == {1} and isinstance(kernel, np.ndarray):
        cut = np.array(kernel.shape[2:])[:, None] - 1 - pads  # of the whole result
        mirrored = kernel[:, :, ::-1, ::-1].swapaxes(0, 1)
        strides = list(params["lhs_dilation"])
        y = graph.add("ConvTranspose", x, mirrored, strides=strides, pads=_flat(cut))
    else:
        raise UserError("The ONNX export knows plain transposed convolutions only.")
    return graph.transpose(y, np.argsort(numbers.out_spec).tolist())


def _flat(pads: np.ndarray) -> list[int]:
    """Puts what is before each axis ahead of what is after."""
    return pads.T.ravel().tolist()


def max_pool(graph: Graph, equation, x: Value) -> Value:
    """Takes the maximum of windows of rows and columns."""
    params = equation.params
    window, strides, pads = (
        np.array(params[name])[1:3] for name in ("window_dimensions", "window_strides", "padding")
    )
    y = graph.add(
        "MaxPool",
        graph.transpose(x, (0, 3, 1, 2)),
        kernel_shape=window.tolist(),
        strides=strides.tolist(),
        pads=_flat(pads),
    )
    return graph.transpose(y, (0, 2, 3, 1))


def gather(graph: Graph, equation, x: Value, indices: Value) -> Value:
    """Reads single numbers at places that lie inside, as `take_along_axis` asks for them.

    Raises:
      UserError: if more than single numbers are read.
    """
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if set(sizes) != {1}:
        raise UserError("The ONNX export can gather single numbers only.")
    shape = (*equation.invars[1].aval.shape[:-1], 1)
    indices = graph.cast(indices, np.int64)
    places: list[Value] = [np.zeros(shape, np.int64) for _ in sizes]  # one for each axis of x
    for column, axis in enumerate(numbers.start_index_map):
        found = graph.add("Gather", indices, np.array(column), axis=-1)
        places[axis] = graph.reshape(found, shape)
    shared = (numbers.operand_batching_dims, numbers.start_indices_batching_dims)
    for axis, along in zip(*shared, strict=True):
        places[axis] = np.indices(shape)[along]
    found = graph.add("GatherND", x, graph.add("Concat", *places, axis=-1))
    return graph.reshape(found, equation.outvars[0].aval.shape)

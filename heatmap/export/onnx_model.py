"""ONNX: the traced core, equation by equation, behind a resampler of ONNX's own operators.

There is no other route: `jax2onnx` asks for an older Orbax than this program, and `tf2onnx` cannot
look into what JAX hands to TensorFlow.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from heatmap import axes
from heatmap.axes import Axis
from heatmap.errors import UserError
from heatmap.export.program import Program
from heatmap.export.resampling import GREY

FILE = "model.onnx"


def libraries() -> tuple[Any, Any]:
    """Imports onnx and onnxruntime.

    Raises:
      UserError: if the extra `export` is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"The ONNX export needs {error.name}: pip install -e '.[export]'."
        ) from error
    return onnx, onnxruntime


def write(folder: pathlib.Path, program: Program) -> None:
    """Writes the program; height and width of the picture are words in it.

    Raises:
      UserError: if the model needs what ONNX or this program's converter does not have.
    """
    onnx, _ = libraries()
    from heatmap.export import onnx_graph, onnx_ops

    graph = onnx_graph.Graph()
    inputs: dict[str, tuple[Any, tuple]] = {"image": (np.dtype(np.uint8), ("height", "width", 3))}
    if program.boxed:
        inputs["box"] = (np.dtype(np.float32), (4,))
    pixels, affine = _read(graph, program)
    arguments = (
        jax.ShapeDtypeStruct(program.input_shape, jnp.float32),
        jax.ShapeDtypeStruct((3, 3), jnp.float32),
    )
    traced, shapes = jax.make_jaxpr(program.core, return_shape=True)(*arguments)
    values = onnx_ops.convert(graph, traced.jaxpr, traced.consts, [pixels, affine])
    found = jax.tree.unflatten(jax.tree.structure(shapes), values)
    outputs = {name: (value, shapes[name].shape) for name, value in found.items()}
    onnx.save(graph.finish(inputs, outputs), folder / FILE)


def _read(graph, program: Program) -> tuple[str, str]:
    """Adds what resamples a picture as `resampling.resample` does, and the affine back."""
    from heatmap.export.onnx_graph import Arithmetic, Number

    config = program.config.data
    sides = graph.add("Split", graph.add("Shape", "image"), outputs=3, axis=0, num_outputs=3)
    height, width = (Number(graph, _scalar(graph, side), True) for side in sides[:2])
    if program.boxed:
        edges = graph.add("Split", "box", outputs=4, axis=0, num_outputs=4)
        wide = [graph.add("Cast", _scalar(graph, edge), to=11) for edge in edges]
        box = [Number(graph, edge, False) for edge in wide]
        down, across = axes.of_box(box, config, Arithmetic)
    else:
        down, across = axes.of_picture(height, width, config, Arithmetic)
    image = _grey(graph) if config.channels == 1 else "image"
    blocks, (rows, columns) = _averaged(graph, image, config.channels, (height, width), down, across)
    top, bottom, below = _neighbours(graph, down, rows, config.image_size[0])
    left, right, beside = _neighbours(graph, across, columns, config.image_size[1])

    def between(row: str) -> str:
        line = graph.add("Gather", blocks, row, axis=0)
        ends = (graph.add("Gather", line, column, axis=1) for column in (left, right))
        return _blend(graph, *ends, graph.add("Reshape", beside, np.array([1, -1, 1])))

    mixed = _blend(
        graph, between(top), between(bottom), graph.add("Reshape", below, np.array([-1, 1, 1]))
    )
    pixels = graph.add("Reshape", graph.add("Round", mixed), np.array(program.input_shape))
    numbers = [v for row in axes.original_from_input(down, across) for v in row]
    flat = graph.add(
        "Concat",
        *(
            graph.add("Reshape", v.cast(np.float32), np.array([1]))
            if isinstance(v, Number)
            else np.array([v], np.float32)
            for v in numbers
        ),
        axis=0,
    )
    return pixels, graph.add("Reshape", flat, np.array([3, 3]))


def _scalar(graph, vector: str) -> str:
    return graph.add("Reshape", vector, np.array([], np.int64))


def _grey(graph) -> str:
    """Adds what `resampling.grey` does."""
    image = graph.add("Mul", graph.add("Cast", "image", to=1), np.float32(1 / 255))
    mixed = graph.add("MatMul", image, np.array(GREY, np.float32)[:, None])
    return graph.add("Floor", graph.add("Mul", mixed, np.float32(255.5)))


def _averaged(graph, image: str, channels: int, sides, down: Axis, across: Axis):
    """Adds the average of blocks of pixels, the border repeated where the last ones lack some.

    Returns:
      (the picture [⌈H / factor⌉, ⌈W / factor⌉, C] float32, its height and width).
    """
    from heatmap.export.onnx_graph import Number

    factors = [Number(graph, axis.factor.cast(np.int64), True) for axis in (down, across)]
    counts = [
        (side + factor - 1) // factor for side, factor in zip(sides, factors, strict=True)
    ]
    for place, (side, factor, count) in enumerate(zip(sides, factors, counts, strict=True)):
        lines = graph.add("Range", np.int64(0), (count * factor).name, np.int64(1))
        lines = graph.add("Min", lines, (side - 1).name)
        image = graph.add("Gather", image, lines, axis=place)
    shape = [
        graph.add("Reshape", number.name, np.array([1]))
        for number in (counts[0], factors[0], counts[1], factors[1])
    ]
    shape = graph.add("Concat", *shape, np.array([channels]), axis=0)
    blocks = graph.add("Reshape", graph.add("Cast", image, to=1), shape)
    sums = graph.add("ReduceSum", blocks, np.array([1, 3]), keepdims=0)
    share = graph.add("Reciprocal", (factors[0] * factors[1]).cast(np.float32))
    return graph.add("Mul", sums, share), counts


def _neighbours(graph, axis: Axis, size, count: int) -> tuple[str, str, str]:
    """Adds what `resampling.neighbours` finds: before and after, int64, and the share of after."""
    last = (size - 1).cast(np.float32)
    steps = graph.add("Mul", axis.step.cast(np.float32), np.arange(count, dtype=np.float32))
    place = graph.add("Add", steps, axis.start.cast(np.float32))
    place = graph.add("Min", graph.add("Max", place, np.float32(0)), last)
    before = graph.add("Floor", place)
    after = graph.add("Min", graph.add("Add", before, np.float32(1)), last)
    whole = (graph.add("Cast", line, to=7) for line in (before, after))
    return (*whole, graph.add("Sub", place, before))


def _blend(graph, first: str, second: str, share: str) -> str:
    rest = graph.add("Sub", np.float32(1), share)
    return graph.add("Add", graph.add("Mul", rest, first), graph.add("Mul", share, second))

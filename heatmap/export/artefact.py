"""The folder that an export leaves: the model, a golden picture, and a file that checks both.

model.stablehlo | saved_model/ | model.onnx    the program, its weights inside
metadata.json                                  what goes in and comes out, where it is from, hashes
golden.npz, golden.png                         a picture and the points to be found on it
check.py                                       loads the model if it finds them
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from heatmap.errors import UserError
from heatmap.export.golden import Golden
from heatmap.keypoints import KeypointSet
from heatmap.report import sheet

CHECK = pathlib.Path(__file__).with_name("check.py")
METADATA = "metadata.json"


def refuse_occupied(out: pathlib.Path) -> None:
    """Finds that a folder can be made.

    Raises:
      UserError: if something is there already.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out={out} exists already; choose another folder, or remove it.")


@contextlib.contextmanager
def making(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `out` that takes its place when the block succeeds."""
    refuse_occupied(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp gives 0700
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_around(
    folder: pathlib.Path, golden: Golden, points: KeypointSet, metadata: Mapping[str, Any]
) -> None:
    """Writes all files but the model, which lies in the folder already.

    Args:
      folder: of the artefact.
      golden: its picture.
      points: their names.
      metadata: facts that JSON can hold; inputs, outputs, points and hashes are added.
    """
    model = sorted(path for path in folder.rglob("*") if path.is_file())
    arrays: dict[str, Any] = {**golden.inputs, **golden.outputs}
    np.savez_compressed(folder / "golden.npz", **arrays)
    sheet.save(folder / "golden.png", _picture(golden, points))
    told = {
        **metadata,
        "points": list(points.names),
        "skeleton": [list(pair) for pair in points.skeleton],
        "inputs": {name: _INPUTS[name] for name in golden.inputs},
        "outputs": {
            name: f"float32 {list(value.shape)}, {_OUTPUTS.get(name, 'further')}"
            for name, value in golden.outputs.items()
        },
        "sha256": {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in model
        },
    }
    (folder / METADATA).write_text(json.dumps(told, indent=2) + "\n")
    shutil.copy(CHECK, folder / CHECK.name)


_INPUTS = {
    "image": "uint8 [H, W, 3], RGB, upright, any size",
    "box": "float32 [4], x0 y0 x1 y1, the outer edges of the instance in pixels of the image",
}
_OUTPUTS = {
    "points": "x and y in pixels of the image; a whole number is the centre of a pixel",
    "maps": "what the network gives, unscaled",
    "coordinates": "what the network gives, shares of the input's width and height",
    "score": "confidence in [0, 1]",
    "entropy": "nats, of each map as a distribution",
    "radius": "pixels of the image, of a disc that holds the true point, by level",
    "confidence": "probability that the point is right",
    "visibility": "probability that the point is in the picture",
    "lengths": "pixels of the image, of each measurement",
    "half_widths": "pixels of the image, how far the true length may be, by level",
}


def _picture(golden: Golden, points: KeypointSet) -> np.ndarray:
    """Draws the golden picture with the points that are to be found on it, and the maps."""
    image, found = golden.inputs["image"], golden.outputs["points"]
    maps = golden.outputs.get("maps") if golden.covered else None
    return sheet.draw(
        image[None],
        None if maps is None else maps[None],
        found[None],
        found[None],
        np.zeros((1, points.count), bool),
        points,
        "golden picture",
    )


def check(folder: pathlib.Path) -> str:
    """Runs `check.py` of an artefact in a process of its own, on the CPU.

    Returns:
      What it says.

    Raises:
      RuntimeError: if the model does not agree with the program.
    """
    quietly = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(
        [sys.executable, "-I", str(folder / CHECK.name)],
        env={**os.environ, **quietly},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(f"The exported model does not agree.\n{process.stdout}{process.stderr}")
    return process.stdout.strip()

"""StableHLO, by jax.export: one function for CPU, NVIDIA GPU and TPU, and any size of picture."""

import pathlib

import jax
import jax.numpy as jnp
from jax import export

from heatmap.export.program import Program

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(folder: pathlib.Path, program: Program) -> None:
    """Writes the program; height and width of the picture are symbols in it."""
    sides = export.symbolic_shape("height, width, 3")
    arguments = [jax.ShapeDtypeStruct(sides, jnp.uint8)]
    if program.boxed:
        arguments.append(jax.ShapeDtypeStruct((4,), jnp.float32))
    exported = export.export(jax.jit(program.whole), platforms=PLATFORMS)(*arguments)
    (folder / FILE).write_bytes(exported.serialize())

"""What an artefact computes, as pure functions: from a picture's pixels to points on it.

`core` begins at the network's input, whose size is fixed, and ends at original pixels; `whole`
begins at the picture. A format that has a resampler of its own takes the core.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from heatmap import axes, decoding, geometry, processes
from heatmap import run as run_lib
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.export import resampling
from heatmap.keypoints import KeypointSet
from heatmap.run import Run

Outputs = dict[str, jax.Array]
# (what the network gave [1, …], original_from_input [3, 3]) -> further outputs by name.
Extra = Callable[[jax.Array, jax.Array], Mapping[str, jax.Array]]

_MOST_GIGABYTES = 1.9  # beside them the file holds the program

# Kernels that only one kind of device has, half precision and memory saved for gradients are
# matters of training.
_PORTABLE = {"fused": False, "remat": False, "dtype": jnp.float32}


def nothing(output: jax.Array, original_from_input: jax.Array) -> Outputs:
    """The further outputs of a model that has none."""
    del output, original_from_input
    return {}


@dataclasses.dataclass(frozen=True)
class Program:
    """A trained run as functions of arrays, with its weights inside.

    Attributes:
      config: the run's config.
      points: what the K points mean.
      boxed: whether a picture comes with the box of an instance.
      core: (input pixels [h, w, C] float32, whole numbers; original_from_input [3, 3] float32) ->
        outputs by name: `points` [K, 2] in original pixels; for a model of maps `maps` [h', w', K]
        as they are, `score` [K] and `entropy` [K]; for one of coordinates, `coordinates` [K, 2].
    """

    config: Config
    points: KeypointSet
    boxed: bool
    core: Callable[[jax.Array, jax.Array], Outputs]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of the network's input, (height, width, channels)."""
        return (*self.config.data.image_size, self.config.data.channels)

    def whole(self, image: jax.Array, *box: jax.Array) -> Outputs:
        """Maps a picture, uint8 RGB [H, W, 3], and its box [4] if it has one, to the outputs."""
        config = self.config.data
        if self.boxed:
            down, across = axes.of_box(box[0], config, jnp)
        else:
            height, width = (jnp.asarray(side, jnp.int32) for side in image.shape[:2])
            down, across = axes.of_picture(height, width, config, jnp)
        if config.channels == 1:
            image = resampling.grey(image)
        pixels = resampling.resample(image, down, across, config.image_size)
        rows = axes.original_from_input(down, across)
        affine = jnp.stack([jnp.stack([jnp.float32(v) for v in row]) for row in rows])
        return self.core(pixels, affine)


def build(run: Run, boxed: bool, extra: Extra = nothing) -> Program:
    """Takes a run's best weights to the host, and makes functions of them.

    Args:
      run: a trained run, on any devices.
      boxed: whether pictures come with the box of an instance.
      extra: further outputs, in JAX.

    Raises:
      UserError: if the weights are too large for a file of any format.
    """
    weights = jax.tree.map(processes.whole, run.weights)
    size = sum(array.nbytes for array in jax.tree.leaves(weights)) / 1e9
    if size > _MOST_GIGABYTES:
        raise UserError(
            f"The weights have {size:.1f} GB, and a file of StableHLO, TensorFlow or ONNX holds 2: "
            "choose a smaller model.backbone."
        )
    config = run.config

    def core(pixels, original_from_input):
        inputs = run_lib.normalise_pixels(pixels[None], config)
        # Devices that round matrix products to fewer digits would not agree with one another.
        with jax.default_matmul_precision("highest"):
            output = run.network.predict(jax.tree.map(jnp.asarray, weights), inputs, **_PORTABLE)
            found = decoding.decode(config, output)
            points = geometry.apply(original_from_input, found.keypoints[0])
            further = extra(output, original_from_input)
        if decoding.decoder_name(config) == "coordinates":
            return {"points": points, "coordinates": output[0], **further}
        confidence = {"score": found.score[0], "entropy": found.entropy[0]}
        return {"points": points, "maps": output[0], **confidence, **further}

    return Program(config, run.points, boxed, core)

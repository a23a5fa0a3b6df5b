"""The networks, by name.

A model is an NNX module with `__call__(image [B, H, W, C], rngs) -> [B, h, w, K]` raw maps or
`[B, K, 2]` coordinates, an attribute `output` that says which, and `describe(image) -> [B, F]`,
features by which pictures can be compared. To add one, write a function from (config, K, rngs) to
a module and give it a line in MODELS.
"""

import jax.numpy as jnp
from flax import nnx

from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.models import keypoint_vit
from heatmap.models.encoder import REDUCTION
from heatmap.models.keypoint_vit import KeypointViT
from heatmap.models.regression import RegressionNet
from heatmap.models.unet import UNet

Model = UNet | RegressionNet | KeypointViT


def create(config: Config, num_keypoints: int, rngs: nnx.Rngs) -> Model:
    """Builds the model that `config.model.name` selects.

    Raises:
      UserError: if the name is unknown or the sizes do not suit the model.
    """
    return choose(MODELS, config.model.name, "model.name")(config, num_keypoints, rngs)


def _unet(config: Config, num_keypoints: int, rngs: nnx.Rngs) -> UNet:
    _check_input(config)
    (height, width), maps = config.data.image_size, config.targets.heatmap_size
    possible = {(height // s, width // s): s for s in UNet.strides}
    if maps not in possible:
        raise UserError(
            f"The unet turns {height}×{width} pictures into maps of "
            f"{', '.join(f'{h}×{w}' for h, w in possible)}; targets.heatmap_size={maps} is none of "
            "these."
        )
    stride, skip = possible[maps], config.model.skip
    dtype = jnp.dtype(config.model.dtype)
    return UNet(num_keypoints, config.data.channels, stride, skip, dtype, rngs)


def _regression(config: Config, num_keypoints: int, rngs: nnx.Rngs) -> RegressionNet:
    _check_input(config)
    dtype = jnp.dtype(config.model.dtype)
    return RegressionNet(num_keypoints, config.data.channels, config.model.dropout, dtype, rngs)


def _check_input(config: Config) -> None:
    if any(size % REDUCTION for size in config.data.image_size):
        raise UserError(
            f"data.image_size={config.data.image_size} does not suit model.name="
            f"{config.model.name!r}: height and width must be divisible by {REDUCTION}."
        )


MODELS = {"unet": _unet, "regression": _regression, "vit": keypoint_vit.create}

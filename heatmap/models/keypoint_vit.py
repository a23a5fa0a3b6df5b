"""A vision transformer, usually pretrained and frozen, with a head."""

import jax.numpy as jnp
from flax import nnx

from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.models import pretrained
from heatmap.models.heads import HEADS
from heatmap.models.vit import ARCHITECTURES, ViT


class KeypointViT(nnx.Module):
    """Backbone and head.

    Attributes:
      output: what `__call__` returns: 'heatmaps' or 'coordinates', by the head.
    """

    def __init__(self, backbone: ViT, head):
        """Joins a backbone and a head, one of HEADS."""
        self.backbone, self.head = backbone, head
        self.output = head.output

    def __call__(self, inputs, rngs: nnx.Rngs | None = None):
        """Maps pictures to raw maps [B, h, w, K] or coordinates [B, K, 2], float32.

        Args:
          inputs: [B, H, W, 3], or what the backbone has made of them already.
          rngs: nothing here is random.
        """
        del rngs
        return self.head(*(inputs if isinstance(inputs, tuple) else self.backbone(inputs)))

    def describe(self, image):
        """Sums up what the backbone sees in [B, H, W, 3], [B, 2 C]: CLS token and mean patch."""
        patches, cls_token = self.backbone(image)
        return jnp.concatenate([cls_token, patches.mean(axis=(1, 2))], axis=-1)


def create(config: Config, num_keypoints: int, rngs: nnx.Rngs) -> KeypointViT:
    """Builds the model with random weights, which `run.build` replaces by pretrained ones.

    Raises:
      UserError: if names are unknown, sizes do not fit, or there are no weights.
    """
    model = config.model
    architecture = choose(ARCHITECTURES, model.backbone, "model.backbone")
    head = choose(HEADS, model.head, "model.head")
    if config.data.channels != 3:
        raise UserError(
            f"model.name='vit' reads colour pictures: data.channels must be 3, got "
            f"{config.data.channels}; grey pictures are read as colour ones too."
        )
    if model.backbone_init == "pretrained":
        pretrained.find(config)
    elif model.backbone_weights:
        raise UserError(
            "model.backbone_init='random' and model.backbone_weights="
            f"{model.backbone_weights!r} contradict each other: leave one out."
        )
    dtype = jnp.dtype(model.dtype)
    grid, maps = architecture.grid(*config.data.image_size), config.targets.heatmap_size
    # First: it follows from the seed, whatever the head.
    backbone = ViT(architecture, dtype, rngs, model.remat)
    return KeypointViT(backbone, head(architecture.width, grid, maps, num_keypoints, dtype, rngs))

"""The convolutional encoder that the UNet and the regression net share."""

import itertools

import jax.numpy as jnp
from flax import nnx

from heatmap.models import ops, stem
from heatmap.models.norm import NormRelu

CHANNELS = (32, 64, 128, 256)
REDUCTION = 2 ** len(CHANNELS)  # input size over the size of the last features


class Encoder(nnx.Module):
    """Four stages of 3×3 convolution, batch norm, ReLU and 2×2 max-pool."""

    def __init__(self, channels: int, dtype, rngs: nnx.Rngs):
        widths = (channels, *CHANNELS)
        self.convs = nnx.List(
            ops.Conv(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.norms = nnx.List(
            NormRelu(width, pool=True, dtype=dtype, rngs=rngs) for width in CHANNELS
        )

    def __call__(self, image) -> list[jnp.ndarray]:
        """Maps [B, H, W, C] to the pooled features of each stage, H/2 … H/16, shallow first."""
        x = stem.apply(self.convs[0], self.norms[0], image)
        features = [x]
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            x = norm.after(conv, x)
            features.append(x)
        return features

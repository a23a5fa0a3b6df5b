"""The convolutional encoder that the UNet and the regression net share."""

import itertools

import jax.numpy as jnp
from flax import nnx

from heatmap.models import ops

CHANNELS = (32, 64, 128, 256)
REDUCTION = 2 ** len(CHANNELS)  # input size over the size of the last features


def batch_norm(features: int, dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalisation with PyTorch's defaults (momentum 0.1 there is 0.9 here)."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)


class Encoder(nnx.Module):
    """Four stages of 3×3 convolution, batch norm, ReLU and 2×2 max-pool."""

    def __init__(self, channels: int, dtype, rngs: nnx.Rngs):
        widths = (channels, *CHANNELS)
        self.convs = nnx.List(
            ops.Conv(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.norms = nnx.List(batch_norm(width, dtype, rngs) for width in CHANNELS)

    def __call__(self, image) -> list[jnp.ndarray]:
        """Maps [B, H, W, C] to the pooled features of each stage, H/2 … H/16, shallow first."""
        features = []
        x = image
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = ops.max_pool_2x2(nnx.relu(norm(conv(x))))
            features.append(x)
        return features

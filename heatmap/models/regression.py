"""RegressionNet: the same encoder, pooled, to coordinates."""

import itertools

from flax import nnx

from heatmap.models import ops
from heatmap.models.encoder import CHANNELS, Encoder


class RegressionNet(nnx.Module):
    """Encoder, global average pooling, three linear layers and a sigmoid.

    Attributes:
      output: what `__call__` returns: 'coordinates'.
    """

    output = "coordinates"

    def __init__(self, num_keypoints: int, channels: int, dropout: float, dtype, rngs: nnx.Rngs):
        """Builds the network.

        Args:
          num_keypoints: K.
          channels: of the input.
          dropout: probability, after each of the first two linear layers.
          dtype: of the computation; parameters are float32.
          rngs: of the initial weights.
        """
        self.encoder = Encoder(channels, dtype, rngs)
        widths = (CHANNELS[-1], 128, 64, 2 * num_keypoints)
        self.linears = nnx.List(
            nnx.Linear(a, b, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(widths)
        )
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, image, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] to coordinates [B, K, 2] in [0, 1], float32 (`geometry.normalise`).

        Args:
          image: the batch.
          rngs: holds the key of dropout; needed in training only.
        """
        x = self.describe(image)
        for linear in self.linears[:-1]:
            x = self.dropout(nnx.relu(linear(x)), rngs=rngs)
        x = self.linears[-1](x)
        x = x.astype(ops.accumulator(x.dtype))
        return nnx.sigmoid(x).reshape(x.shape[0], -1, 2)

    def describe(self, image):
        """Sums up what the network sees in [B, H, W, C], [B, 256]."""
        return self.encoder(image)[-1].mean(axis=(1, 2))

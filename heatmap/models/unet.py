"""HeatmapNet: a small UNet from pictures to one map per point."""

from flax import nnx

from heatmap.models import ops
from heatmap.models.encoder import CHANNELS, Encoder
from heatmap.models.norm import NormRelu


class UNet(nnx.Module):
    """Encoder 32-64-128-256, transposed-convolution decoder with skips (Ronneberger et al., 2015).

    The maps are half the input's size after three decoder stages; stopping a stage earlier gives a
    quarter, one more stage (32→32, without a skip: no encoder features have that size) the whole.

    Attributes:
      output: what `__call__` returns: 'heatmaps'.
    """

    output = "heatmaps"
    strides = (4, 2, 1)

    def __init__(
        self, num_keypoints: int, channels: int, stride: int, skip: bool, dtype, rngs: nnx.Rngs
    ):
        """Builds the network.

        Args:
          num_keypoints: K.
          channels: of the input.
          stride: input size over map size: 4, 2 or 1.
          skip: concatenate the encoder's features of the same size.
          dtype: of the computation; parameters are float32.
          rngs: of the initial weights.
        """
        self.encoder = Encoder(channels, dtype, rngs)
        self.skip = skip
        widths = {4: (128, 64), 2: (128, 64, 32), 1: (128, 64, 32, 32)}[stride]
        skips = (CHANNELS[2], CHANNELS[1], 0, 0) if skip else (0, 0, 0, 0)
        deconvs, norms, features = [], [], CHANNELS[-1]
        for width, extra in zip(widths, skips, strict=False):
            deconvs.append(ops.ConvTranspose(features, width, dtype=dtype, rngs=rngs))
            norms.append(NormRelu(width, dtype=dtype, rngs=rngs))
            features = width + extra
        self.deconvs, self.norms = nnx.List(deconvs), nnx.List(norms)
        # The last stage's output goes to the 1×1 convolution without a skip, whatever the stride.
        # Maps are nearly empty, so a head that starts near zero starts near the answer; from the
        # usual initialiser, the first epochs go into unlearning noise (as in Xiao et al., 2018).
        small = nnx.initializers.normal(1e-3)
        self.head = ops.Conv1x1(
            widths[-1], num_keypoints, kernel_init=small, dtype=dtype, rngs=rngs
        )

    def __call__(self, image, rngs: nnx.Rngs | None = None):
        """Maps [B, H, W, C] to raw maps [B, H/stride, W/stride, K] in float32."""
        del rngs  # nothing here is random
        features = self.encoder(image)
        x = features[-1]
        last = len(self.deconvs) - 1
        for i, (deconv, norm) in enumerate(zip(self.deconvs, self.norms, strict=True)):
            x = norm.after(deconv, x)
            if self.skip and i < min(2, last):
                x = ops.join_channels(x, features[2 - i])
        x = self.head(x)
        return x.astype(ops.accumulator(x.dtype))

    def describe(self, image):
        """Sums up what the network sees in [B, H, W, C], [B, 256]."""
        return self.encoder(image)[-1].mean(axis=(1, 2))

"""Heads on the features of a backbone: two kinds of heatmaps, and coordinates.

To add one, write an `nnx.Module` with the constructor and `__call__` of those below, which refuses
sizes that do not fit, and give it a line in HEADS.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from heatmap.errors import UserError
from heatmap.models import ops
from heatmap.models.norm import GroupNormRelu
from heatmap.models.vit import Grid

# Maps are nearly empty, so a head that starts near zero starts near the answer (see unet.py).
_NEAR_ZERO = nnx.initializers.normal(1e-3)


class DeconvHead(nnx.Module):
    """Transposed convolutions, GroupNorm and ReLU, then 1×1 (Xiao et al., ECCV 2018).

    Each stage is PyTorch's ConvTranspose2d(kernel_size=4, stride=2, padding=1), which doubles the
    size: two make 64×64 maps of 16×16 features, three 128×128.

    Attributes:
      output: what `__call__` returns: 'heatmaps'.
    """

    output = "heatmaps"
    widths = (256, 128, 64)  # after each stage

    def __init__(
        self, width: int, grid: Grid, maps: Grid, num_keypoints: int, dtype, rngs: nnx.Rngs
    ):
        """Builds the head.

        Args:
          width: channels of the features.
          grid: their (height, width).
          maps: (height, width) of the heatmaps.
          num_keypoints: K.
          dtype: of the computation; parameters are float32.
          rngs: of the initial weights.

        Raises:
          UserError: if no number of stages leads from the features to the maps.
        """
        possible = {
            (grid[0] << n, grid[1] << n): self.widths[:n] for n in range(1, len(self.widths) + 1)
        }
        if maps not in possible:
            raise UserError(
                f"model.head='deconv' turns {grid[0]}×{grid[1]} features into maps of "
                f"{', '.join(f'{h}×{w}' for h, w in possible)}; targets.heatmap_size={maps} is "
                "none of these."
            )
        deconvs, norms = [], []
        for features in possible[maps]:
            deconvs.append(ops.ConvTranspose(width, features, dtype=dtype, rngs=rngs))
            norms.append(GroupNormRelu(features, dtype=dtype, rngs=rngs))
            width = features
        self.deconvs, self.norms = nnx.List(deconvs), nnx.List(norms)
        self.last = ops.Conv1x1(
            width, num_keypoints, kernel_init=_NEAR_ZERO, dtype=dtype, rngs=rngs
        )

    def __call__(self, features, cls_token):
        """Maps features [B, h, w, C] to raw maps [B, H, W, K] in float32."""
        del cls_token
        x = features
        for deconv, norm in zip(self.deconvs, self.norms, strict=True):
            x = norm(deconv(x))
        return self.last(x).astype(jnp.float32)


class SimpleHead(nnx.Module):
    """ReLU, bilinear upsampling and a 3×3 convolution (ViTPose's second: Xu et al., NeurIPS 2022).

    Attributes:
      output: what `__call__` returns: 'heatmaps'.
    """

    output = "heatmaps"

    def __init__(
        self, width: int, grid: Grid, maps: Grid, num_keypoints: int, dtype, rngs: nnx.Rngs
    ):
        """Builds the head; the arguments are those of `DeconvHead`.

        Raises:
          UserError: if the maps are smaller than the features.
        """
        if maps[0] < grid[0] or maps[1] < grid[1]:
            raise UserError(
                f"model.head='simple' enlarges {grid[0]}×{grid[1]} features; "
                f"targets.heatmap_size={maps} is smaller."
            )
        self.maps = maps
        self.conv = ops.Conv(width, num_keypoints, dtype=dtype, rngs=rngs)
        self.conv.kernel[...] = _NEAR_ZERO(rngs.params(), self.conv.kernel.shape)

    def __call__(self, features, cls_token):
        """Maps features [B, h, w, C] to raw maps [B, H, W, K] in float32."""
        del cls_token
        x = nnx.relu(features)
        x = jax.image.resize(x, (x.shape[0], *self.maps, x.shape[-1]), "bilinear")
        return self.conv(x).astype(jnp.float32)


class ClsMlpHead(nnx.Module):
    """Coordinates from the CLS token by one hidden layer: the baseline that maps are compared with.

    Attributes:
      output: what `__call__` returns: 'coordinates'.
    """

    output = "coordinates"

    def __init__(
        self, width: int, grid: Grid, maps: Grid, num_keypoints: int, dtype, rngs: nnx.Rngs
    ):
        """Builds the head; the arguments are those of `DeconvHead`, and sizes do not matter."""
        del grid, maps
        self.hidden = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.last = nnx.Linear(width, 2 * num_keypoints, dtype=dtype, rngs=rngs)

    def __call__(self, features, cls_token):
        """Maps a CLS token [B, C] to coordinates [B, K, 2] in [0, 1] (`geometry.normalise`)."""
        del features
        x = self.last(nnx.relu(self.hidden(cls_token))).astype(jnp.float32)
        return nnx.sigmoid(x).reshape(x.shape[0], -1, 2)


HEADS = {"deconv": DeconvHead, "simple": SimpleHead, "cls_mlp": ClsMlpHead}

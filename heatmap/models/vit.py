"""Vision transformers of the DINOv2 and DINOv3 families, as extractors of features."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from heatmap.errors import UserError
from heatmap.models import ops, positions

Grid = tuple[int, int]  # (rows, columns) of patches


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """An architecture.

    Attributes:
      patch: side of a patch, pixels.
      width: channels of a token, C.
      depth: number of blocks.
      heads: of each attention.
      hidden: units of each MLP.
      gated: whether the MLP is a SwiGLU.
      registers: tokens that belong to no patch (Darcet et al., ICLR 2024).
      position_grid: side of the table of learned positions, 0 for rotary ones.
      antialias: how that table is interpolated where it shrinks.
      key_bias: whether keys have a bias; DINOv3 masks it, which is to have none.
      epsilon: of the layer norms.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    gated: bool
    registers: int
    position_grid: int
    antialias: bool
    key_bias: bool
    epsilon: float

    @classmethod
    def dinov3(cls, width: int, depth: int, heads: int, hidden: int, gated: bool) -> "ViTConfig":
        """The family of Siméoni et al. (DINOv3, 2025)."""
        return cls(16, width, depth, heads, hidden, gated, 4, 0, False, False, 1e-5)

    @classmethod
    def dinov3_vits16(cls) -> "ViTConfig":
        """21.6 million parameters."""
        return cls.dinov3(384, 12, 6, 1536, gated=False)

    @classmethod
    def dinov3_vits16plus(cls) -> "ViTConfig":
        """28.7 million parameters."""
        return cls.dinov3(384, 12, 6, 1536, gated=True)

    @classmethod
    def dinov3_vitb16(cls) -> "ViTConfig":
        """85.7 million parameters."""
        return cls.dinov3(768, 12, 12, 3072, gated=False)

    @classmethod
    def dinov3_vitl16(cls) -> "ViTConfig":
        """303 million parameters."""
        return cls.dinov3(1024, 24, 16, 4096, gated=False)

    @classmethod
    def dinov3_vith16plus(cls) -> "ViTConfig":
        """841 million parameters."""
        return cls.dinov3(1280, 32, 20, 5120, gated=True)

    @classmethod
    def dinov2(cls, width: int, depth: int, heads: int, registers: int) -> "ViTConfig":
        """The family of Oquab et al. (DINOv2, 2023), trained on 37×37 patches."""
        hidden, antialias = 4 * width, registers > 0
        return cls(14, width, depth, heads, hidden, False, registers, 37, antialias, True, 1e-6)

    @classmethod
    def dinov2_vits14(cls, registers: int = 0) -> "ViTConfig":
        """22.1 million parameters; `registers` is 0 or 4."""
        return cls.dinov2(384, 12, 6, registers)

    @classmethod
    def dinov2_vitb14(cls, registers: int = 0) -> "ViTConfig":
        """86.6 million parameters; `registers` is 0 or 4."""
        return cls.dinov2(768, 12, 12, registers)

    @classmethod
    def tiny16(cls) -> "ViTConfig":
        """Two narrow blocks, for tests and smoke runs; nobody has published weights for it."""
        return cls.dinov3(64, 2, 2, 128, gated=False)

    def grid(self, height: int, width: int) -> Grid:
        """Divides a picture into patches.

        Raises:
          UserError: if patches do not cover it.
        """
        if height % self.patch or width % self.patch or not height * width:
            raise UserError(
                f"data.image_size={(height, width)} cannot be divided into patches of "
                f"{self.patch}×{self.patch} pixels: choose multiples of {self.patch}."
            )
        return height // self.patch, width // self.patch


ARCHITECTURES = {
    "dinov3_vits16": ViTConfig.dinov3_vits16(),
    "dinov3_vits16plus": ViTConfig.dinov3_vits16plus(),
    "dinov3_vitb16": ViTConfig.dinov3_vitb16(),
    "dinov3_vitl16": ViTConfig.dinov3_vitl16(),
    "dinov3_vith16plus": ViTConfig.dinov3_vith16plus(),
    "dinov2_vits14": ViTConfig.dinov2_vits14(),
    "dinov2_vits14_reg": ViTConfig.dinov2_vits14(registers=4),
    "dinov2_vitb14": ViTConfig.dinov2_vitb14(),
    "dinov2_vitb14_reg": ViTConfig.dinov2_vitb14(registers=4),
    "tiny16": ViTConfig.tiny16(),
}


class ViT(nnx.Module):
    """Patches to tokens, pre-norm blocks, and a last norm over all tokens."""

    def __init__(self, config: ViTConfig, dtype, rngs: nnx.Rngs, remat: bool = False):
        """Builds the network.

        Args:
          config: the architecture.
          dtype: of the matrix products; parameters, norms, the sum over the blocks and what is
            returned are float32.
          rngs: of the initial weights.
          remat: keep only what goes from block to block for the gradients, and compute the rest
            again (Chen et al., 2016, arXiv:1604.06174): a third more work, for a fraction of the
            memory.
        """
        self.config, self.remat = config, remat
        width = config.width
        key = rngs.params
        # As a matrix over flattened patches: a convolution of stride 16 is the same product, and
        # its gradient is slow on a CPU.
        self.patch_embed = _linear(3 * config.patch**2, width, dtype, rngs)
        self.cls_token = nnx.Param(_small(key(), (width,)))
        if config.registers:
            self.registers = nnx.Param(_small(key(), (config.registers, width)))
        if config.position_grid:
            self.positions = nnx.Param(_small(key(), (1 + config.position_grid**2, width)))
        self.blocks = nnx.List(Block(config, dtype, rngs) for _ in range(config.depth))
        self.norm = _layer_norm(config, jnp.float32, rngs)

    def __call__(self, image) -> tuple[jax.Array, jax.Array]:
        """Computes the features of a batch.

        Args:
          image: [B, H, W, 3], normalised.

        Returns:
          (features [B, H/patch, W/patch, C], CLS token [B, C]), float32.

        Raises:
          UserError: if H or W is not a multiple of the patch.
        """
        rows, columns = self.config.grid(*image.shape[1:3])
        x = self.embed(image)
        rotation = self.rotation((rows, columns))
        for block in self.blocks:
            x = ops.batch_stays_divided(x)
            x = _again(block, x, rotation) if self.remat else block(x, rotation)
        x = self.norm(x)
        patches = x[:, 1 + self.config.registers :]
        return patches.reshape(x.shape[0], rows, columns, -1), x[:, 0]

    def embed(self, image):
        """Maps [B, H, W, 3] to the tokens before the first block: CLS, registers, patches."""
        batch, height, width, channels = image.shape
        patch = self.config.patch
        rows, columns = self.config.grid(height, width)
        pixels = image.reshape(batch, rows, patch, columns, patch, channels)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)
        patches = self.patch_embed(pixels).astype(jnp.float32)
        first = self.cls_token[...]
        if side := self.config.position_grid:
            table = self.positions[...]
            first = first + table[0]
            learned = table[1:].reshape(side, side, -1)
            learned = positions.resize(learned, (rows, columns), self.config.antialias)
            patches = patches + learned.reshape(rows * columns, -1)
        prefix = first[None]
        if self.config.registers:
            prefix = jnp.concatenate([prefix, self.registers[...]])
        prefix = jnp.broadcast_to(prefix, (batch, *prefix.shape))
        return jnp.concatenate([prefix, patches], axis=1)

    def rotation(self, grid: Grid):
        """Returns the angles that `positions.rotate` takes, or None for learned positions."""
        config = self.config
        if config.position_grid:
            return None
        return positions.rope(grid, 1 + config.registers, config.width // config.heads)


class Block(nnx.Module):
    """Attention, then an MLP, each normalised before, scaled after (LayerScale) and added."""

    def __init__(self, config: ViTConfig, dtype, rngs: nnx.Rngs):
        self.norm1 = _layer_norm(config, dtype, rngs)
        self.attention = Attention(config, dtype, rngs)
        self.scale1 = nnx.Param(jnp.ones(config.width))
        self.norm2 = _layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype, rngs)
        self.scale2 = nnx.Param(jnp.ones(config.width))

    def __call__(self, x, rotation):
        """Maps tokens [B, N, C] to tokens, float32."""
        x = x + self.scale1[...] * self.attention(self.norm1(x), rotation)
        return x + self.scale2[...] * self.mlp(self.norm2(x))


class Attention(nnx.Module):
    """Multi-head self-attention, with rotary positions where there are any."""

    def __init__(self, config: ViTConfig, dtype, rngs: nnx.Rngs):
        self.heads = config.heads
        self.fused = True  # where there is a kernel for it
        linear = functools.partial(_linear, config.width, config.width, dtype, rngs)
        self.query, self.value, self.out = linear(), linear(), linear()
        self.key = linear(use_bias=config.key_bias)

    def __call__(self, x, rotation):
        """Maps tokens [B, N, C] to tokens."""
        shape = (*x.shape[:2], self.heads, -1)
        query, key, value = (
            layer(x).reshape(shape) for layer in (self.query, self.key, self.value)
        )
        if rotation is not None:
            query, key = (positions.rotate(a, *rotation) for a in (query, key))
        kernel = attention_kernel(query.dtype) if self.fused else None
        if kernel:
            y = jax.nn.dot_product_attention(query, key, value, implementation=kernel)
        else:
            y = plain_attention(query, key, value)
        return self.out(y.reshape(x.shape))


class Mlp(nnx.Module):
    """Two layers with the exact GELU between them, or a SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ViTConfig, dtype, rngs: nnx.Rngs):
        self.gated = config.gated
        self.up = _linear(config.width, config.hidden, dtype, rngs)
        if config.gated:
            self.gate = _linear(config.width, config.hidden, dtype, rngs)
        self.down = _linear(config.hidden, config.width, dtype, rngs)

    def __call__(self, x):
        """Maps tokens [B, N, C] to tokens."""
        hidden = self.up(x)
        if self.gated:
            return self.down(nnx.silu(self.gate(x)) * hidden)
        return self.down(nnx.gelu(hidden, approximate=False))


_again = nnx.remat(Block.__call__)


def plain_attention(query, key, value):
    """Computes `jax.nn.dot_product_attention` with plain operators (Vaswani et al., 2017).

    What is small is scaled, the query and the weighed values: on a CPU a pass over the scores costs
    as much as the product that made them.

    Args:
      query: [B, N, heads, C].
      key: [B, N, heads, C].
      value: [B, N, heads, C].

    Returns:
      [B, N, heads, C].
    """
    wide = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    query = query * query.dtype.type(1 / math.sqrt(query.shape[-1]))
    scores = wide("bqhc,bkhc->bhqk", query, key)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    sums = jnp.moveaxis(weights.sum(-1, keepdims=True), 1, 2)  # [B, N, heads, 1]
    weighed = wide("bhqk,bkhc->bqhc", weights.astype(value.dtype), value)
    return (weighed / sums).astype(value.dtype)


def attention_kernel(dtype) -> Literal["cudnn"] | None:
    """Chooses the fused kernel of `jax.nn.dot_product_attention`, None where there is none.

    cuDNN's flash attention takes half precision only, on NVIDIA GPUs since Ampere.
    """
    device = jax.devices()[0]
    recent = device.device_kind.startswith("NVIDIA") and float(device.compute_capability) >= 8.0
    return "cudnn" if recent and dtype in (jnp.bfloat16, jnp.float16) else None


def _small(key, shape, dtype=jnp.float32):
    """Draws weights of standard deviation 0.02 that have the same bits on every platform.

    A frozen backbone is made again from its seed when a checkpoint is restored, perhaps on another
    kind of device: uniform numbers need only exact operations, normal ones a logarithm.
    """
    uniform = 2 * jax.random.uniform(key, shape, dtype) - 1  # exact
    return uniform * dtype(0.02 * math.sqrt(3))


def _linear(features_in: int, features_out: int, dtype, rngs: nnx.Rngs, use_bias: bool = True):
    return ops.Linear(
        features_in, features_out, use_bias=use_bias, kernel_init=_small, dtype=dtype, rngs=rngs
    )


def _layer_norm(config: ViTConfig, dtype, rngs: nnx.Rngs):
    # The fast variance, a difference of two means, costs digits where a channel is far from zero.
    return nnx.LayerNorm(
        config.width, epsilon=config.epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs
    )

"""The same training step in PyTorch, with the batch on the device and targets rendered already."""

import contextlib
import time
from typing import Any

import torch
from torch import nn

from benchmarks import torch_twin
from heatmap.config import Config
from heatmap.errors import UserError


class DinoWithDeconv(nn.Module):
    """A frozen DINOv3 ViT-S/16 of transformers, two transposed convolutions and a map per point."""

    def __init__(self, num_keypoints: int):
        super().__init__()
        import transformers

        settings = transformers.DINOv3ViTConfig(num_register_tokens=4)
        self.backbone = transformers.DINOv3ViTModel(settings).eval().requires_grad_(False)
        self.prefix, self.patch = 1 + settings.num_register_tokens, settings.patch_size
        self.head = nn.Sequential(*self._up(settings.hidden_size, 256), *self._up(256, 128))
        self.final = nn.Conv2d(128, num_keypoints, 1)

    @staticmethod
    def _up(features: int, width: int) -> list[nn.Module]:
        deconv = nn.ConvTranspose2d(features, width, 4, stride=2, padding=1)
        return [deconv, nn.GroupNorm(32, width), nn.ReLU()]

    def forward(self, x) -> torch.Tensor:
        """Maps [B, 3, H, W] to raw maps [B, K, H/4, W/4]."""
        with torch.no_grad():
            tokens = self.backbone(x).last_hidden_state[:, self.prefix :]
        rows, columns = (side // self.patch for side in x.shape[2:])
        features = tokens.transpose(1, 2).reshape(len(x), -1, rows, columns)
        return self.final(self.head(features))


def network(config: Config) -> nn.Module:
    """Returns the twin of a config's network, with random weights.

    Raises:
      UserError: if it has none.
    """
    channels = config.data.channels
    if config.model.name == "unet":
        return torch_twin.HeatmapNet(5, channels, config.model.skip)
    if config.model.name == "regression":
        return torch_twin.RegressionNet(5, channels, config.model.dropout)
    if (config.model.backbone, config.model.head) == ("dinov3_vits16", "deconv"):
        return DinoWithDeconv(4)
    raise UserError(f"model.name={config.model.name!r} with these settings has no twin here.")


class Stepper:
    """A network that takes training steps on one batch, or reads points off it."""

    def __init__(
        self,
        config: Config,
        channels_last: bool = False,
        bf16: bool = False,
        compiled: bool = False,
    ):
        """Builds the network on the GPU if there is one.

        Args:
          config: of the run that this is the twin of.
          channels_last: lays pictures out as PyTorch computes them fastest.
          bf16: computes in bfloat16, where PyTorch's autocast does.
          compiled: has torch.compile translate the network.
        """
        device = self._device = "cuda" if torch.cuda.is_available() else "cpu"
        layout = torch.channels_last if channels_last else torch.contiguous_format
        torch.manual_seed(0)
        self.net = network(config).train().to(device)
        self.net.to(memory_format=layout)  # type: ignore[call-overload]  # a keyword of its own
        if isinstance(self.net, DinoWithDeconv):
            self.net.backbone.eval()
        height, width = config.data.image_size
        shape = (config.train.batch_size, config.data.channels, height, width)
        pictures = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self._pictures = pictures.contiguous(memory_format=layout)
        self._bf16 = bf16
        self._forward = torch.compile(self.net) if compiled else self.net
        self._optimiser = torch.optim.Adam([p for p in self.net.parameters() if p.requires_grad])
        with torch.no_grad():
            self._targets = torch.rand_like(self.net(self._pictures[:2].float() / 255)[:1])
        self._targets = self._targets.expand(len(pictures), *self._targets.shape[1:]).clone()

    def facts(self) -> dict[str, Any]:
        """Says on what the steps are taken."""
        return {"devices": torch.cuda.get_device_name() if self._device == "cuda" else "cpu"}

    def steps(self, count: int) -> float:
        """Takes steps and returns the seconds of one."""
        began = time.perf_counter()
        for _ in range(count):
            self._optimiser.zero_grad(set_to_none=True)
            with self._precision():
                output = self._forward(self._pictures.float() / 255)
            loss = nn.functional.mse_loss(output.float(), self._targets)
            loss.backward()
            self._optimiser.step()
        loss.item()  # waits for the device
        return (time.perf_counter() - began) / count

    @torch.inference_mode()
    def predictions(self, count: int) -> float:
        """Reads points off the batch, by argmax, and returns the seconds of one time."""
        self.net.eval()
        began = time.perf_counter()
        for _ in range(count):
            with self._precision():
                output = self._forward(self._pictures.float() / 255)
            if output.ndim == 4:
                output = output.flatten(2).argmax(2)
        output.sum().item()  # waits for the device
        return (time.perf_counter() - began) / count

    def _precision(self) -> contextlib.AbstractContextManager:
        if not self._bf16:
            return contextlib.nullcontext()
        return torch.autocast(self._device, dtype=torch.bfloat16)

"""HeatmapNet and RegressionNet in PyTorch, as the specification of the study writes them down."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from heatmap.errors import UserError
from heatmap.run import Run

CHANNELS = (32, 64, 128, 256)


class Encoder(nn.Module):
    """Four times convolution, batch norm, ReLU and max-pool."""

    def __init__(self, channels: int):
        super().__init__()
        widths = (channels, *CHANNELS)
        for i in range(4):
            self.add_module(
                f"conv{i + 1}",
                nn.Sequential(
                    nn.Conv2d(widths[i], widths[i + 1], 3, padding=1),
                    nn.BatchNorm2d(widths[i + 1]),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                ),
            )

    def forward(self, x) -> list[torch.Tensor]:
        """Maps [B, C, H, W] to the features of each stage."""
        features = []
        for stage in self.children():
            x = stage(x)
            features.append(x)
        return features


class HeatmapNet(nn.Module):
    """Encoder, three transposed convolutions with skips, and one map per point."""

    def __init__(self, num_keypoints: int = 5, channels: int = 1, skip: bool = True):
        super().__init__()
        self.skip = skip
        self.encoder = Encoder(channels)
        extra = (CHANNELS[2], CHANNELS[1]) if skip else (0, 0)
        self.deconv4 = self._up(CHANNELS[3], 128)
        self.deconv3 = self._up(128 + extra[0], 64)
        self.deconv2 = self._up(64 + extra[1], 32)
        self.final = nn.Conv2d(32, num_keypoints, 1)

    @staticmethod
    def _up(features: int, width: int) -> nn.Sequential:
        deconv = nn.ConvTranspose2d(features, width, 4, stride=2, padding=1)
        return nn.Sequential(deconv, nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x) -> torch.Tensor:
        """Maps [B, C, H, W] to raw maps [B, K, H/2, W/2]."""
        _, second, third, fourth = self.encoder(x)
        x = self.deconv4(fourth)
        x = self.deconv3(torch.cat([x, third], 1) if self.skip else x)
        x = self.deconv2(torch.cat([x, second], 1) if self.skip else x)
        return self.final(x)


class RegressionNet(nn.Module):
    """Encoder, global average, three linear layers and a sigmoid."""

    def __init__(self, num_keypoints: int = 5, channels: int = 1, dropout: float = 0.5):
        super().__init__()
        self.encoder = Encoder(channels)
        self.fc1, self.fc2 = nn.Linear(CHANNELS[-1], 128), nn.Linear(128, 64)
        self.fc3 = nn.Linear(64, 2 * num_keypoints)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x) -> torch.Tensor:
        """Maps [B, C, H, W] to coordinates [B, 2K] in [0, 1]: x and y of each point in turn."""
        x = self.encoder(x)[-1].mean((2, 3))
        for linear in (self.fc1, self.fc2):
            x = self.dropout(torch.relu(linear(x)))
        return torch.sigmoid(self.fc3(x))


def twin(run: Run) -> nn.Module:
    """Returns the twin of a run, holding the run's weights.

    Args:
      run: opened by `heatmap.run.open_run`.

    Raises:
      UserError: if the run's network has no twin.
    """
    config, points = run.config, run.points.count
    channels = config.data.channels
    height, width = config.data.image_size
    if config.model.name == "regression":
        net: nn.Module = RegressionNet(points, channels, config.model.dropout)
        layers = _regression_layers()
    elif config.model.name == "unet" and config.targets.heatmap_size == (height // 2, width // 2):
        net = HeatmapNet(points, channels, config.model.skip)
        layers = _heatmap_layers()
    else:
        raise UserError(
            f"model.name={config.model.name!r} with maps of {config.targets.heatmap_size} has no "
            "twin in PyTorch: unet has one where maps are half the picture, and regression."
        )
    net.load_state_dict(dict(_entries(jax.tree.map(np.asarray, run.weights), layers)), strict=True)
    return net.eval()


def _heatmap_layers() -> dict[str, str]:
    """Names each layer here by its path there, in the order of `convs` and `norms`."""
    decoder = {f"deconvs/{i}": f"deconv{4 - i}.0" for i in range(3)}
    norms = {f"norms/{i}": f"deconv{4 - i}.1" for i in range(3)}
    return {**_encoder_layers(), **decoder, **norms, "head": "final"}


def _regression_layers() -> dict[str, str]:
    return {**_encoder_layers(), **{f"linears/{i}": f"fc{i + 1}" for i in range(3)}}


def _encoder_layers() -> dict[str, str]:
    convs = {f"encoder/convs/{i}": f"encoder.conv{i + 1}.0" for i in range(4)}
    norms = {f"encoder/norms/{i}": f"encoder.conv{i + 1}.1" for i in range(4)}
    return {**convs, **norms}


def _entries(weights: dict[str, Any], layers: dict[str, str]) -> Iterator[tuple[str, Any]]:
    for path, name in layers.items():
        params = _at(weights["params"], path)
        if "scale" in params:
            stats = _at(weights["stats"], path)
            yield f"{name}.weight", torch.tensor(params["scale"])
            yield f"{name}.running_mean", torch.tensor(stats["mean"])
            yield f"{name}.running_var", torch.tensor(stats["var"])
            yield f"{name}.num_batches_tracked", torch.tensor(0)
        else:
            kernel = params["kernel"]
            if "deconvs" in path:  # theirs is mirrored, [in, out, height, width]
                kernel = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
            elif kernel.ndim == 4:
                kernel = kernel.transpose(3, 2, 0, 1)
            else:
                kernel = kernel.T
            yield f"{name}.weight", torch.tensor(np.ascontiguousarray(kernel))
        yield f"{name}.bias", torch.tensor(params["bias"])


def _at(tree: Any, path: str) -> dict[str, Any]:
    for part in path.split("/"):
        tree = tree[int(part) if part.isdigit() else part]
    return tree

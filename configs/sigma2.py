"""HeatmapNet on stick figures, σ = 2 heatmap pixels."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.targets.sigma = 2.0
    return config

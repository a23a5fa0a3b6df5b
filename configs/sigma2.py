"""HeatmapNet on stick figures with σ = 2 heatmap pixels.

    python main.py --config=configs/sigma2.py

Draws the data set on the first start, trains 30 epochs with Adam at 1e-3, and prints the scores:
12 minutes on two CPU cores; test PCK@0.05 1.0, median error 0.157 pixels (docs/results.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.targets.sigma = 2.0
    return config


def get_hyper(hyper):
    """The sweep of `python launch/local.py --config=configs/sigma2.py`: the width of the maps."""
    return hyper.sweep("targets.sigma", [1.0, 2.0, 3.0])

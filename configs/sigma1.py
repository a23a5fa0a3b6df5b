"""HeatmapNet on stick figures with σ = 1 heatmap pixels.

    python main.py --config=configs/sigma1.py

Draws the data set on the first start, trains 30 epochs with Adam at 1e-3, and prints the scores:
as long as configs/sigma2.py, 12 minutes on two CPU cores, and as good to expect.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.targets.sigma = 1.0
    return config

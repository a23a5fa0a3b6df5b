"""Direct coordinate regression on stick figures: the peer that HeatmapNet is compared with.

    python main.py --config=configs/regression.py

The same data, encoder, optimiser and length as configs/sigma2.py: 10 minutes on two busy CPU cores;
test PCK@0.05 0.066, median error 10.45 pixels (docs/results.md).
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.model.name = "regression"
    config.loss.name = "coordinate_mse"
    return config

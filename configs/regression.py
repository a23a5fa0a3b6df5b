"""Direct coordinate regression on stick figures: the peer that HeatmapNet is compared with.

    python main.py --config=configs/regression.py

The same data, encoder, optimiser and length as configs/sigma2.py.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.model.name = "regression"
    config.loss.name = "coordinate_mse"
    return config

"""Elytra of drawn beetles: two lines on each, in centimetres, with trays to calibrate on.

    python main.py --config=configs/specimens.py --workdir=runs/specimens

Draws 147 trays in two seconds (input_pipeline/specimens.py), trains 20 epochs with Adam, from 1e-3
down to 0, and prints the scores: 2 min 18 s on two CPU cores; on the test trays
length_line_err_pct/median 2.79, error_px/unordered/median 0.981. The cal split is for
heatmap.calibration; docs/uncertainty.md goes on from there.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.name = "specimens"
    config.data.image_size = (96, 96)
    config.data.channels = 3
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.targets.heatmap_size = (48, 48)

    config.augment.horizontal_flip = 0.5
    config.augment.rotation = 30.0
    config.augment.scale = (0.9, 1.1)
    config.augment.brightness = 0.2

    config.loss.interchangeable = True  # the annotator begins a line at either end
    config.optim.schedule = "cosine"
    config.train.epochs = 20
    config.train.batch_size = 16
    return config

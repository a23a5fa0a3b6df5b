"""Experiment 004: elytra width and length of beetles, in centimetres.

    python main.py --config=configs/beetles.py:sigma=2,lr=1e-3 --config.data.root=DIR \\
        --config.model.backbone_weights=WEIGHTS

A frozen DINOv3 ViT-S/16, two transposed convolutions, and a map for each end of the two lines. DIR
holds the folders hawaii/, beetlepalooza/ and biorepo/ as they are downloaded; WEIGHTS is what
`python -m heatmap.models.convert` made of the published checkpoint. 100,000 steps, or 12 hours,
whichever comes first, on one accelerator. The best checkpoint has the smallest mean error of the
length on Hawaii's validation specimens, `val/hawaii/length_line_err_cm`.

The argument picks one run of the sweep σ × learning rate, which `python launch/beetles_sweep.py`
and the other launchers start as a whole.
"""

import hashlib

from ml_collections import ConfigDict

from configs import common

SIGMAS = ("1", "2", "3")  # heatmap pixels
LEARNING_RATES = ("1e-3", "3e-3", "1e-2", "3e-2")


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is such as 'sigma=2,lr=1e-3'."""
    chosen = common.parse_argument(argument, sigma=2.0, lr=1e-3)
    config = common.get_config()
    config.seed = _seed(chosen["sigma"], chosen["lr"])

    config.data.name = "hawaii+beetlepalooza+biorepo"
    config.data.image_size = (256, 256)
    config.data.channels = 3
    config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet, as the backbone was trained
    config.data.std = (0.229, 0.224, 0.225)
    config.data.split.method = "species_groups"

    config.augment.crop_scale = (0.5, 1.0)
    config.augment.crop_ratio = (0.75, 1.333)
    config.augment.horizontal_flip = 0.5
    config.augment.vertical_flip = 0.5
    config.augment.rotation = 180.0
    config.augment.rotation_prob = 0.75
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2
    config.augment.hue = 0.1

    config.targets.sigma = chosen["sigma"]
    config.model.name = "vit"
    config.loss.interchangeable = True  # an elytron's length has no first end

    config.optim.name = "adamw"
    config.optim.learning_rate = chosen["lr"]
    config.optim.weight_decay = 0.1
    config.train.epochs = 0
    config.train.steps = 100_000
    config.train.max_hours = 12.0
    config.train.batch_size = 64
    config.train.eval_every_steps = 1000
    config.train.best_metric = "val/hawaii/length_line_err_cm"
    config.eval.batch_size = 64
    config.eval.metrics = ("lines", "error_px", "pck")
    config.log.tags = ("exp-004-heatmap",)
    return config


def get_hyper(hyper):
    """The twelve runs, each picked by its argument because that is what its seed follows from."""
    return hyper.product(hyper.sweep(":sigma", SIGMAS), hyper.sweep(":lr", LEARNING_RATES))


def _seed(sigma: float, learning_rate: float) -> int:
    """Each run of the sweep has a seed of its own, the same on every machine."""
    digest = hashlib.sha256(f"{sigma:g} {learning_rate:g}".encode()).digest()
    return int.from_bytes(digest[:4], "big")

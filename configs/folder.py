"""Your own labelled pictures: a DeepLabCut project, a COCO keypoints file, or a simple JSON.

    python main.py --config=configs/folder.py --config.data.root=PROJECT
    python main.py --config=configs/folder.py --config.data.name=coco --config.data.root=ROOT

docs/results.md has what shorter runs on smaller pictures reached on real photographs, ten minutes
each on two busy CPU cores: a median error of 2.65 pixels on 640×480.

README.md ("Your own pictures") shows the three layouts. Without a split in the data, whole videos
or specimens are held out by a hash of their name; for a single video, hold out stretches of time:

    … --config.data.split.method=blocks --config.data.split.folds=5 --config.data.split.fold=0
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.name = "deeplabcut"
    config.data.channels = 3
    config.data.image_size = (256, 256)
    config.data.mean = (0.485, 0.456, 0.406)  # of ImageNet: a fair guess for photographs
    config.data.std = (0.229, 0.224, 0.225)
    config.data.split.method = "hash"
    config.targets.heatmap_size = (128, 128)

    # A few hundred labels are few: show each of them in many ways.
    config.augment.crop_scale = (0.6, 1.0)
    config.augment.crop_ratio = (0.8, 1.25)
    config.augment.rotation = 25.0
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.2

    config.optim.name = "adamw"
    config.optim.weight_decay = 1e-2
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50
    config.train.epochs = 0
    config.train.steps = 1500
    config.train.batch_size = 16
    config.train.eval_every_steps = 100
    config.eval.sheet_every_evals = 5
    return config

"""What the tests of the label readers share."""

import pathlib

import numpy as np
from PIL import Image

from configs import common
from heatmap import config as config_lib


def data_config(root="", group_by="", **fields):
    """The `data` part of the default config with fields changed."""
    config = common.get_config()
    config.data.update(root=str(root), **fields)
    config.data.split.group_by = group_by
    return config_lib.from_mapping(config.to_dict()).data


def save(path: pathlib.Path, width=40, height=30, **options):
    """Writes a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def change(path, value):
    """Returns an edit of nested JSON: `change("images.0.id", 7)`."""

    def edit(content):
        *steps, last = (int(s) if s.isdigit() else s for s in path.split("."))
        for step in steps:
            content = content[step]
        if value is KeyError:
            del content[last]
        else:
            content[last] = value

    return edit

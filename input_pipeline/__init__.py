"""Data sources by name, and the splits made of them.

A source is a function `read(config: DataConfig) -> Records`; to add one, write it in a module of
its own and give it a line in DATASETS.
"""

import os

# TensorFlow reads these once, when it is first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf

from heatmap.config import DataConfig
from heatmap.fields import choose
from input_pipeline import coco, deeplabcut, simple_json, stick_figures
from input_pipeline.records import Records
from input_pipeline.splits import Split, make_split

__all__ = ["DATASETS", "Records", "Split", "load", "make_split"]

# TensorFlow only feeds data; left alone it would take the accelerator's memory from JAX.
tf.config.set_visible_devices([], "GPU")


def load(config: DataConfig) -> tuple[Records, Split]:
    """Reads a data set and divides it.

    Args:
      config: `name` selects the source, `split` the division.

    Returns:
      (all records, the rows of each split with the split's content hash).

    Raises:
      UserError: for an unknown source, or anything wrong with its files or its division.
    """
    records = choose(DATASETS, config.name, "data.name")(config)
    return records, make_split(records, config.split)


DATASETS = {
    "stick_figures": stick_figures.read,
    "simple_json": simple_json.read,
    "coco": coco.read,
    "deeplabcut": deeplabcut.read,
}

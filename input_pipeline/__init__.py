"""Data sources by name, and the splits made of them.

A source is a function `read(config: DataConfig) -> Records`; to add one, write it in a module of
its own and give it a line in DATASETS. Names joined by + are read together, each from the folder
of its name in `data.root`.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable

# TensorFlow reads these once, when it is first imported, by `host` or a library.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.fields import choose
from input_pipeline import pictures
from input_pipeline.records import Records, mix
from input_pipeline.splits import Split, make_split

__all__ = ["DATASETS", "Records", "Split", "load", "make_split", "read", "read_parts"]


def load(config: DataConfig) -> tuple[Records, Split]:
    """Reads a data set and divides it.

    Args:
      config: `name` selects the source, `split` the division.

    Returns:
      (all records, their pictures kept if `cache` asks for it; the rows of each split with the
      split's content hash).

    Raises:
      UserError: for an unknown source, or anything wrong with its files or its division.
    """
    # What is to be kept is decoded once, in an earlier run or below, where a bad picture ends this
    # one; only to leave bad ones out they have to be known before.
    decoded_later = config.cache and config.on_error == "raise"
    records = read(dataclasses.replace(config, verify=config.verify and not decoded_later))
    split = make_split(records, config.split)
    return pictures.keep(records, config), split


def read(config: DataConfig) -> Records:
    """Reads a data set, or several as one.

    Args:
      config: `name` is that of a source, or several joined by +.

    Returns:
      All records.

    Raises:
      UserError: for an unknown source, anything wrong with its files, or sources that do not mix.
    """
    parts = read_parts(config)
    return mix(parts) if len(parts) > 1 else parts[config.name]


def read_parts(config: DataConfig) -> dict[str, Records]:
    """Reads the data sets that `data.name` joins by +, each for itself.

    Raises:
      UserError: as `read` does, but for what concerns the mixture.
    """
    names = config.name.split("+")
    readers = {name: _reader(choose(DATASETS, name, "data.name")) for name in names}
    if len(readers) < len(names):
        raise UserError(f"data.name={config.name!r} names a data set twice; name each once.")
    if len(names) == 1:
        return {config.name: readers[config.name](config)}
    if not config.root:
        raise UserError(
            "data.root is empty; set --config.data.root to the folder that holds "
            f"{', '.join(f'{name}/' for name in names)}."
        )
    return {
        name: reader(dataclasses.replace(config, name=name, root=os.path.join(config.root, name)))
        for name, reader in readers.items()
    }


def _reader(place: str) -> Callable[[DataConfig], Records]:
    """Imports a reader from where it stands, 'module:function'."""
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


# Where the readers stand; only the one that is used is imported, with the libraries it needs.
DATASETS = {
    "stick_figures": "input_pipeline.stick_figures:read",
    "specimens": "input_pipeline.specimens:read",
    "simple_json": "input_pipeline.simple_json:read",
    "coco": "input_pipeline.coco:read",
    "deeplabcut": "input_pipeline.deeplabcut:read",
    "hawaii": "input_pipeline.hawaii:read",
    "beetlepalooza": "input_pipeline.beetlepalooza:read",
    "biorepo": "input_pipeline.biorepo:read",
}

"""The labelled pictures of a run's own data: known again among others, and what they show."""

import dataclasses
import hashlib
import pathlib
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.inference import judged
from heatmap.inference.predictor import Predictor


def records_of(config: Config, root: str) -> Any | None:
    """Reads the labelled instances of a run's data, `input_pipeline.Records`.

    Args:
      config: of the run.
      root: where the data are now, or '' if they have not moved.

    Returns:
      None if they are not there, which is told: ranking can do without.
    """
    import input_pipeline

    data = dataclasses.replace(config.data, root=root or config.data.root, verify=False)
    try:
        records = input_pipeline.read(dataclasses.replace(data, on_error="skip"))
    except UserError as error:
        _tell("pictures with labels may be listed again", error)
        return None
    return records.take(np.flatnonzero(records.labelled.any(axis=1)))


def _tell(consequence: str, error: UserError) -> None:
    print(f"{error} Without the run's own data (--root), {consequence}.", file=sys.stderr)


def without(sources: Sequence, records) -> list:
    """Leaves out the pictures that have labels, by the bytes of their files.

    Args:
      sources: `input_pipeline.sources.Source`; videos stay.
      records: from `records_of`.

    Returns:
      The others, in the same order.
    """
    by_size: dict[int, list[pathlib.Path]] = defaultdict(list)
    for file in () if records is None else dict.fromkeys(records.files.tolist()):
        path = pathlib.Path(file)
        if file and path.is_file():
            by_size[path.stat().st_size].append(path)
    known: dict[int, set[bytes]] = {}  # hashes by size, of sizes that occur

    def is_labelled(path: pathlib.Path) -> bool:
        try:
            size = path.stat().st_size
            if size in by_size and size not in known:
                known[size] = {_hash(one) for one in by_size[size]}
            return size in known and _hash(path) in known[size]
        except OSError:  # whoever looks at it will say so
            return False

    return [source for source in sources if source.is_video or not is_labelled(source.path)]


def _hash(path: pathlib.Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def features(model: Predictor, records) -> np.ndarray | None:
    """Returns [N, F], what the first model sees on labelled pictures, or None without any."""
    if records is None or not len(records):
        return None
    try:
        return np.asarray(judged.examine(model, records).features, np.float32)
    except UserError as error:  # a picture that is there and broken
        _tell("pictures like those with labels may be listed", error)
        return None

"""What was predicted of unlabelled pictures, and its file: one row per instance."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from heatmap import workdir

_PICTURES = b"heatmap.pictures"


@dataclasses.dataclass(frozen=True)
class Instances:
    """N instances with K points each, in pixels of the original pictures.

    Attributes:
      source: [N] str, the picture or video.
      frame: [N] int64 from 0, or -1 for a picture.
      instance: [N] int32, the number of the instance in its picture, from 0.
      size: [N, 2] int32, (height, width) of the picture.
      box: [N, 4] edges (x0, y0, x1, y1) of the instance.
      unit: [N, 2] pixels of the picture to one of the network's input, across and down.
      points: [N, K, 2] (x, y).
      score: [N, K], NaN where the decoder has none.
      covariance: [N, K, 2, 2] px², as `decoding.covariance`; NaN where there are no maps.
    """

    source: np.ndarray
    frame: np.ndarray
    instance: np.ndarray
    size: np.ndarray
    box: np.ndarray
    unit: np.ndarray
    points: np.ndarray
    score: np.ndarray
    covariance: np.ndarray

    def __len__(self) -> int:
        """The number of instances, N."""
        return len(self.source)

    def take(self, rows) -> "Instances":
        """Returns the instances of these rows (indices or a mask)."""
        names = [field.name for field in dataclasses.fields(self)]
        return Instances(**{name: getattr(self, name)[rows] for name in names})


def joined(parts: list[Instances]) -> Instances:
    """Puts at least one table after another."""
    names = [field.name for field in dataclasses.fields(Instances)]
    return Instances(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})


def save(path: pathlib.Path, found: Instances, pictures: list[Any]) -> None:
    """Writes a Parquet file whole or not at all.

    Args:
      path: of the file.
      found: its rows.
      pictures: what is known of the pictures that they are of, also of those without an instance;
        what JSON can hold.
    """
    columns = {}
    for field in dataclasses.fields(Instances):
        array = getattr(found, field.name)
        flat = pa.array(array.ravel())
        width = int(np.prod(array.shape[1:]))
        columns[field.name] = (
            pa.FixedSizeListArray.from_arrays(flat, width) if array.ndim > 1 else flat
        )
    table = pa.table(columns).replace_schema_metadata({_PICTURES: json.dumps(pictures)})
    with workdir.replacing(path) as temporary:
        pa.parquet.write_table(table, temporary)


def pictures_in(path: pathlib.Path) -> list[Any]:
    """Reads what `save` was told of the pictures, or nothing from a file of another kind."""
    try:
        return json.loads((pa.parquet.read_schema(path).metadata or {})[_PICTURES])
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return []


def load(path: pathlib.Path) -> Instances:
    """Reads what `save` wrote."""
    table = pa.parquet.read_table(path)
    count, arrays = table.num_rows, {}
    for field in dataclasses.fields(Instances):
        column = table[field.name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            shape = (count, column.type.list_size)
            arrays[field.name] = column.flatten().to_numpy().reshape(shape)
        elif pa.types.is_string(column.type):
            arrays[field.name] = np.array(column.to_pylist(), dtype=str)
        else:
            arrays[field.name] = column.to_numpy()
    k = arrays["score"].shape[1]
    arrays["points"] = arrays["points"].reshape(count, k, 2)
    arrays["covariance"] = arrays["covariance"].reshape(count, k, 2, 2)
    return Instances(**arrays)

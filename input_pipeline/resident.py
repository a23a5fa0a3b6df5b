"""Training pictures that lie on the devices: `data.cache='device'`.

A batch then says which pictures it is of, and how they are moved and recoloured; no pixel travels.
"""

import jax
import numpy as np

from heatmap import geometry
from heatmap.errors import UserError
from input_pipeline.pictures import in_channels
from input_pipeline.records import Records

_SHARE = 0.8  # of the memory that is free; the step needs some too


def place(records: Records, size: geometry.Size, channels: int, sharding) -> dict[str, jax.Array]:
    """Copies the pictures of records to every device.

    Args:
      records: with pixels in memory or kept.
      size: (height, width) that hold any of them, from `batching.source_size`.
      channels: 1 or 3, of the network's input.
      sharding: of an array that every device holds whole.

    Returns:
      {'pictures': uint8 [M, H, W, channels], each in its upper left corner, 'sizes': int32 [M, 2]}.

    Raises:
      UserError: if a device has too little memory for them.
    """
    pictures = _pictures(records)
    shape = (len(pictures), *size, channels)
    _check_room(int(np.prod(shape)))
    padded, sizes = np.zeros(shape, np.uint8), np.zeros((len(pictures), 2), np.int32)
    for i, picture in enumerate(pictures):
        height, width = sizes[i] = picture.shape[:2]
        padded[i, :height, :width] = np.asarray(in_channels(picture, channels))
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in {"pictures": padded, "sizes": sizes}.items()
    }


def places(records: Records) -> np.ndarray:
    """Returns [N] int32: which of the M pictures each record is of."""
    if records.pixels is not None:
        return np.arange(len(records), dtype=np.int32)
    return np.unique(records.files, return_inverse=True)[1].astype(np.int32)


def _pictures(records: Records) -> list[np.ndarray]:
    if records.pixels is not None:
        return list(records.pixels)
    return [records.kept.pictures[str(file)] for file in np.unique(records.files)]


def _check_room(needed: int) -> None:
    for device in jax.local_devices():
        told = device.memory_stats() or {}
        free = told.get("bytes_limit", 0) - told.get("bytes_in_use", 0)
        if free and needed > _SHARE * free:
            raise UserError(
                f"The training pictures need {needed / 1e9:.1f} GB of each device, and {device} "
                f"has {free / 1e9:.1f} GB left, of which a step needs some: set data.cache to "
                "'memory' or 'disk'."
            )

"""The table that every reader fills: one row per instance to be localised."""

import dataclasses

import numpy as np

from heatmap.keypoints import KeypointSet


@dataclasses.dataclass(frozen=True)
class Records:
    """N instances, in the order of the files that list them.

    All coordinates are pixels of the original picture, by the convention of `heatmap.geometry`.

    Attributes:
      points: what the K points mean.
      ids: [N] str, the picture's name; unique together with `instances`.
      instances: [N] int32, the number of the instance in its picture, from 0.
      groups: [N] str, what must not be divided between splits (video, specimen, tray).
      order: [N] int64, the place in time within the group.
      splits: [N] str, the split that the data names, or ''.
      keypoints: [N, K, 2] float64 (x, y); zeros where not labelled.
      labelled: [N, K] bool.
      boxes: [N, 4] float64, edges (x0, y0, x1, y1) of the instance.
      areas: [N] float64, px², the scale of OKS.
      sizes: [N, 2] int32, (height, width) as displayed.
      files: [N] str, path of the picture, or '' where `pixels` holds it.
      orientations: [N] int32, EXIF orientation to undo when decoding (1 = none).
      pixels: [N, H, W, C] uint8, for small data sets that live in memory, or None.
      skipped: one sentence for each record left out under `data.on_error='skip'`.
    """

    points: KeypointSet
    ids: np.ndarray
    instances: np.ndarray
    groups: np.ndarray
    order: np.ndarray
    splits: np.ndarray
    keypoints: np.ndarray
    labelled: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    files: np.ndarray
    orientations: np.ndarray
    pixels: np.ndarray | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of instances, N."""
        return len(self.ids)

    def take(self, rows) -> "Records":
        """Returns the records of these rows (indices or a mask), with the same meaning."""
        columns = {
            field.name: value[rows]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        return dataclasses.replace(self, **columns)

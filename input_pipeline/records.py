"""The table that every reader fills: one row per instance to be localised."""

import dataclasses
from typing import Any

import numpy as np

from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet

# What most sources do not know: columns that a reader may leave to be filled with these.
_DEFAULTS = {"px_per_cm": np.nan, "species": "", "dataset": "", "left_out": ""}


def _unfilled() -> np.ndarray:
    return np.empty(0)


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
      px_per_cm: [N] float64, the picture's scale, NaN where it is not known.
      species: [N] str, or ''.
      dataset: [N] str, which data set of a mixture, or '' where that needs no telling.
      left_out: [N] str, why no split may hold the record, or ''.
      pixels: [N, H, W, C] uint8, for small data sets that live in memory, or None.
      kept: pictures that have been decoded already, `pictures.Kept`, or None.
      skipped: one sentence for each picture left out under `data.on_error='skip'`.
      notes: sentences for the log.
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
    px_per_cm: np.ndarray = dataclasses.field(default_factory=_unfilled)
    species: np.ndarray = dataclasses.field(default_factory=_unfilled)
    dataset: np.ndarray = dataclasses.field(default_factory=_unfilled)
    left_out: np.ndarray = dataclasses.field(default_factory=_unfilled)
    pixels: np.ndarray | None = None
    kept: Any = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for name, value in _DEFAULTS.items():
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self), value))

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


def mix(parts: dict[str, Records]) -> Records:
    """Puts several data sets into one table, so that each example is as likely as any other.

    Args:
      parts: by name. The name goes before a record's id and group, which keeps them apart, and
        into `dataset`.

    Returns:
      The records of all parts, in their order.

    Raises:
      UserError: if the points of two parts do not mean the same.
    """
    first, *others = parts
    for name in others:
        if parts[name].points != parts[first].points:
            raise UserError(
                f"data.name mixes {first} and {name}, whose points do not mean the same "
                f"({', '.join(parts[first].points.names)}; {', '.join(parts[name].points.names)}); "
                "train on them one by one."
            )
    renamed = [_renamed(part, name) for name, part in parts.items()]
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for part in renamed])
        for field in dataclasses.fields(Records)
        if isinstance(getattr(renamed[0], field.name), np.ndarray)
    }
    for name in ("skipped", "notes"):
        columns[name] = tuple(text for part in renamed for text in getattr(part, name))
    return dataclasses.replace(renamed[0], **columns)


def _renamed(records: Records, name: str) -> Records:
    return dataclasses.replace(
        records,
        ids=np.array([f"{name}/{value}" for value in records.ids]),
        groups=np.array([f"{name}/{value}" for value in records.groups]),
        dataset=np.full(len(records), name),
    )

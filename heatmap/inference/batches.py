"""Instances of pictures through a predictor, a batch at a time, without waiting for the devices."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from heatmap import state
from heatmap.decoding import Decoded
from heatmap.inference import instances, predictor
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor

Rows = Sequence[tuple[Any, Any]]  # (`sources.Picture`, one of its `sources.Item`s)
Started = tuple[Rows, Any]  # and what comes of them, a tree of [B, …] on the devices
Ask = Callable[[jax.Array], Any]  # uint8 [B, H, W, C] on the devices -> such a tree

_AHEAD = 8  # batches that the devices are given while pictures are read


def size_for(model: Predictor) -> int:
    """Returns how many instances the devices are given at a time."""
    devices = model.mesh.size
    return -(-model.config.eval.batch_size // devices) * devices


def at_once(model: Predictor, picture: Any) -> Instances:
    """Predicts the instances of one picture in the smallest batch that the devices divide."""
    rows = [(picture, item) for item in picture.items]
    devices = model.mesh.size
    return finish(model, [start(model, rows, size=-(-len(rows) // devices) * devices)])


def start(model: Predictor, rows: Rows, ask: Ask | None = None, size: int | None = None) -> Started:
    """Sends instances to the devices, and returns before they are done.

    The last one is repeated to fill the batch, so that one program serves all.

    Args:
      model: on whose devices.
      rows: the instances.
      ask: a method of the model; by default it decodes.
      size: of the batch, by default `size_for`; the devices divide it.
    """
    from input_pipeline import batching

    images = np.stack([item.image for _, item in rows])
    missing = (size or size_for(model)) - len(rows)
    images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    placed = batching.to_devices({"image": images}, state.sharded(model.mesh))
    # Pixels that are on the devices by now need not be kept here.
    rows = [(picture, dataclasses.replace(item, image=item.image[:0])) for picture, item in rows]
    return rows, (ask or model)(placed["image"])


def finish(model: Predictor, started: Sequence[Started]) -> Instances:
    """Fetches what batches have come to, in pixels of the original pictures."""
    return joined(model, [instances_of(*_fetch(*batch)) for batch in started])


def joined(model: Predictor, found: Sequence[Instances]) -> Instances:
    """Puts tables, perhaps none, into one."""
    return instances.joined([_none(model.points.count), *found])


def each(model: Predictor, ask: Ask, pictures: Iterable) -> Iterator[tuple[Rows, Any]]:
    """Yields instances and what is said of them, on the host, while later pictures are read.

    Args:
      model: on whose devices.
      ask: as in `start`.
      pictures: `input_pipeline.sources.Picture`.
    """
    size = size_for(model)
    waiting: list = []
    computing: collections.deque[Started] = collections.deque()
    for picture in pictures:
        waiting += [(picture, item) for item in picture.items]
        while len(waiting) >= size:
            computing.append(start(model, waiting[:size], ask))
            waiting = waiting[size:]
        while len(computing) > _AHEAD:
            yield _fetch(*computing.popleft())
    if waiting:
        computing.append(start(model, waiting, ask))
    for batch in computing:
        yield _fetch(*batch)


def _fetch(rows: Rows, computed: Any) -> tuple[Rows, Any]:
    """Brings [B, …] to the host, without what has filled the batch."""
    return rows, jax.tree.map(lambda array: np.asarray(array)[: len(rows)], computed)


def instances_of(rows: Rows, decoded: Decoded) -> Instances:
    """Takes what was read off instances [n, …] to pixels of the original pictures."""
    affines = np.stack([item.input_from_original for _, item in rows])
    points, covariance, unit = predictor.in_original_pixels(decoded, affines)
    return Instances(
        source=np.array([picture.source.name for picture, _ in rows]),
        frame=np.array([picture.frame for picture, _ in rows], np.int64),
        instance=np.array([item.number for _, item in rows], np.int32),
        size=np.array([picture.size for picture, _ in rows], np.int32),
        box=np.stack([item.box for _, item in rows]),
        unit=unit,
        points=points,
        score=np.asarray(decoded.score, np.float64),
        covariance=covariance,
    )


def of_records(records, decoded: Decoded, model: Predictor) -> Instances:
    """Does the same for what was read off labelled instances, `input_pipeline.Records`."""
    from input_pipeline import batching

    affines = batching.eval_affines(records, model.config)
    points, covariance, unit = predictor.in_original_pixels(decoded, affines)
    return Instances(
        source=records.ids,
        frame=np.full(len(records), -1),
        instance=records.instances,
        size=records.sizes,
        box=records.boxes,
        unit=unit,
        points=points,
        score=np.asarray(decoded.score, np.float64),
        covariance=covariance,
    )


def _none(k: int) -> Instances:
    """A table without rows, of the types that `instances_of` gives."""
    return Instances(
        source=np.empty(0, str),
        frame=np.empty(0, np.int64),
        instance=np.empty(0, np.int32),
        size=np.empty((0, 2), np.int32),
        box=np.empty((0, 4)),
        unit=np.empty((0, 2)),
        points=np.empty((0, k, 2)),
        score=np.empty((0, k)),
        covariance=np.empty((0, k, 2, 2)),
    )

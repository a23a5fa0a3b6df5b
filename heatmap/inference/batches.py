"""Instances of pictures through a predictor, a batch at a time, without waiting for the devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from heatmap import state
from heatmap.decoding import Decoded
from heatmap.inference import instances, predictor
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor

Rows = Sequence[tuple[Any, Any]]  # (`sources.Picture`, one of its `sources.Item`s)
Started = tuple[Rows, Decoded]


def size_for(model: Predictor) -> int:
    """Returns how many instances the devices are given at a time."""
    devices = model.mesh.size
    return -(-model.config.eval.batch_size // devices) * devices


def start(model: Predictor, rows: Rows) -> Started:
    """Sends instances, at most `size_for`, to the devices, and returns before they are done.

    The last one is repeated to fill the batch, so that one program serves all.
    """
    from input_pipeline import batching

    images = np.stack([item.image for _, item in rows])
    images = np.concatenate([images, np.repeat(images[-1:], size_for(model) - len(rows), axis=0)])
    placed = batching.to_devices({"image": images}, state.sharded(model.mesh))
    # Pixels that are on the devices by now need not be kept here.
    rows = [(picture, dataclasses.replace(item, image=item.image[:0])) for picture, item in rows]
    return rows, model(placed["image"])


def finish(model: Predictor, started: Sequence[Started]) -> Instances:
    """Fetches what batches have come to, in pixels of the original pictures."""
    found = [_fetch(rows, decoded) for rows, decoded in started]
    return instances.joined([_none(model.points.count), *found])


def _fetch(rows: Rows, decoded: Decoded) -> Instances:
    decoded = jax.tree.map(lambda array: np.asarray(array)[: len(rows)], decoded)
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


def _none(k: int) -> Instances:
    """A table without rows, of the types that `_fetch` gives."""
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

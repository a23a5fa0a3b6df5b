"""From pictures, as `input_pipeline.sources` reads them, to what a predictor says of them."""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from heatmap import state, workdir
from heatmap.decoding import Decoded
from heatmap.inference import predictor as predictor_lib
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor

# Batches on the devices while pictures are read; they are not waited for.
_AHEAD = 8

Ask = Callable[[jax.Array], Any]


def answers(model: Predictor, ask: Ask, pictures: Iterable) -> Iterator[tuple[list, Any]]:
    """Asks a predictor about the instances of pictures, a batch at a time.

    Args:
      model: whose devices answer.
      ask: uint8 [B, H, W, C] on the devices -> tree of [B, …]; `model` itself, or a method of it.
      pictures: `input_pipeline.sources.Picture`.

    Yields:
      For n instances, [(picture, item)] without their pixels, and the tree of [n, …] on the host.
    """
    size = _batch_size(model)
    waiting: list = []
    computing: collections.deque = collections.deque()
    for picture in pictures:
        waiting += [(picture, item) for item in picture.items]
        while len(waiting) >= size:
            computing.append(_start(model, ask, waiting[:size], size))
            waiting = waiting[size:]
        while len(computing) > _AHEAD:
            yield _finish(*computing.popleft())
    if waiting:
        computing.append(_start(model, ask, waiting, size))
    for batch in computing:
        yield _finish(*batch)


def _batch_size(model: Predictor) -> int:
    devices = model.mesh.size
    return -(-model.config.eval.batch_size // devices) * devices


def _start(model: Predictor, ask: Ask, rows: list, size: int) -> tuple[list, Any]:
    """Sends a batch, its last rows repeated to fill it, to the devices."""
    from input_pipeline import batching

    images = np.stack([item.image for _, item in rows])
    images = np.concatenate([images, np.repeat(images[-1:], size - len(rows), axis=0)])
    sharding = state.sharded(model.mesh)
    return _without_images(rows), ask(batching.to_devices({"image": images}, sharding)["image"])


def _without_images(rows: list) -> list:
    """Lets go of pixels that are on the devices by now."""
    return [(picture, dataclasses.replace(item, image=item.image[:0])) for picture, item in rows]


def _finish(rows: list, computed: Any) -> tuple[list, Any]:
    return rows, jax.tree.map(lambda array: np.asarray(array)[: len(rows)], computed)


def instances_of(rows: list, decoded: Decoded) -> Instances:
    """Takes what a batch has come to, from `answers`, to pixels of the original pictures."""
    affines = np.stack([item.input_from_original for _, item in rows])
    points, covariance, unit = predictor_lib.in_original_pixels(decoded, affines)
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
    """Does the same for labelled instances, `input_pipeline.Records`."""
    from input_pipeline import batching

    affines = batching.eval_affines(records, model.config)
    points, covariance, unit = predictor_lib.in_original_pixels(decoded, affines)
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


def write_problems(path: pathlib.Path, problems: Sequence) -> None:
    """Lists what could not be read; nothing stays of an earlier list where all could.

    Args:
      path: of the CSV file.
      problems: `input_pipeline.sources.Problem`.
    """
    if not problems:
        path.unlink(missing_ok=True)
        return
    with workdir.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "frame", "reason"])
        writer.writerows([problem.name, problem.frame, problem.reason] for problem in problems)

"""Labelled pictures and what a model makes of their labels."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from heatmap import evaluate, geometry
from heatmap.inference import batches, candidates, doubts, ranking
from heatmap.inference.doubts import Doubt
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Examined, Predictor
from heatmap.pairs import cheaper_order
from heatmap.report import examples
from heatmap.report.findings import Example


@dataclasses.dataclass(frozen=True)
class Judged:
    """A split and what a model makes of its labels.

    Attributes:
      name: of the split.
      records: its N instances.
      predicted: [N, K, 2] px.
      truth: [N, K, 2] px, NaN where not labelled.
      doubts: of those with a label, the largest first.
    """

    name: str
    records: Any
    predicted: np.ndarray
    truth: np.ndarray
    doubts: list[Doubt]


def examine(model: Predictor, records) -> Examined:
    """Asks about labelled records, `input_pipeline.Records`, as evaluation does."""

    def step(_, batch):
        return model.examine(batch["image"]), 0.0, 0.0

    with jax.set_mesh(model.mesh):
        examined, _ = evaluate.collect(model.runs[0], step, None, records)
    return examined


def predict(model: Predictor, records) -> Instances:
    """Predicts labelled records, `input_pipeline.Records`, as evaluation does."""
    return batches.of_records(records, examine(model, records).decoded, model)


def judge(model: Predictor, name: str, records, found: Instances, count: int) -> Judged:
    """Orders the records of a split by the label that is doubted most.

    Args:
      model: that answers.
      name: of the split.
      records: `input_pipeline.Records`.
      found: from `predict`.
      count: how many doubts are wanted.
    """
    weight = records.labelled.astype(np.float64)
    truth, weight = cheaper_order(found.points, records.keypoints, weight, model.free_pairs)
    truth = np.where(weight[..., None] > 0, truth, np.nan)
    expected = ranking.expected_errors(found, model.config)
    listed = doubts.rank(found.points, truth, expected, count)
    return Judged(name, records, found.points, truth, listed)


def look(model: Predictor, listed: Sequence[tuple[Judged, Doubt]]) -> list[Example]:
    """Returns the pictures of doubts with their labels and predictions."""
    shown: dict[int, Example] = {}
    for one in {id(one): one for one, _ in listed}.values():
        ranks = [rank for rank, (other, _) in enumerate(listed) if other is one]
        places = np.array([listed[rank][1].row for rank in ranks])
        pixels, wanted, affines = examples.inputs(one.records, model.config, places)
        pictures = np.concatenate(pixels)[wanted]
        for rank, place, picture, affine in zip(ranks, places, pictures, affines, strict=True):
            doubt = listed[rank][1]
            what = f"{model.points.names[doubt.point]} {doubt.error:.0f} px off"
            if doubt.swapped:
                what = doubts.swaps(doubt.swapped[:1], model.points)[0]
            shown[rank] = candidates.example(
                f"{rank + 1}. {what}",
                picture,
                geometry.apply(affine, one.predicted[place]),
                geometry.apply(affine, one.truth[place]),
            )
    return [shown[rank] for rank in sorted(shown)]

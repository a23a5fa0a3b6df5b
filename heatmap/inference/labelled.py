"""Predictions of labelled pictures, and how far off they are."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from heatmap import evaluate
from heatmap.inference import batches
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor
from heatmap.keypoints import KeypointSet, Measurement, Pair
from heatmap.pairs import cheaper_order, distance


@dataclasses.dataclass(frozen=True)
class Errors:
    """Predictions of labelled instances, and how far off they are.

    Attributes:
      found: N instances.
      groups: [N] str.
      points: [N, K] px, infinite where lost, NaN where not labelled.
      lines: [N, M] px, of the length of each measurement, NaN likewise.
      reference: [N] px, the diagonal of the extent of the labelled points.
      present: [N, K] bool, whether the point has a label.
    """

    found: Instances
    groups: np.ndarray
    points: np.ndarray
    lines: np.ndarray
    reference: np.ndarray
    present: np.ndarray

    def right(self, within: float, absent_known: bool) -> tuple[np.ndarray, np.ndarray]:
        """Says which points are right.

        Args:
          within: a share of the reference, beyond which a point is wrong.
          absent_known: whether a missing label says that the point is not in the picture: then it
            is nowhere right.

        Returns:
          (whether each is right; whether that is known), [N, K] bool each.
        """
        apart = np.isfinite(self.reference) & (self.reference > 0)
        known = (absent_known | self.present) & apart[:, None]
        return self.present & (self.points < within * self.reference[:, None]), known


def measure(predictor: Predictor, records, points: KeypointSet) -> Errors:
    """Predicts records, as heatmap.predict would, and compares them with their labels.

    Args:
      predictor: that answers.
      records: `input_pipeline.Records`.
      points: what its points mean, with the lengths to measure.
    """

    def step(_, batch):
        return predictor(batch["image"]), 0.0, 0.0

    with jax.set_mesh(predictor.mesh):
        decoded, _ = evaluate.collect(predictor.runs[0], step, None, records)
    found = batches.of_records(records, decoded, predictor)
    return compare(found, records, points, predictor.free_pairs)


def compare(found: Instances, records, points: KeypointSet, free: Sequence[Pair] = ()) -> Errors:
    """Sets predictions beside the labels of their records.

    Args:
      found: N instances.
      records: `input_pipeline.Records`, their labels.
      points: what the K points mean, with the lengths to measure.
      free: pairs that are taken in the order that suits the prediction. The points of any other
        pair are held to their names, whatever the data set says of its order: who is told that a
        disc holds the left hand is not told so of either hand.
    """
    weight = records.labelled.astype(np.float64)
    truth, weight = cheaper_order(found.points, records.keypoints, weight, free)
    labelled = weight > 0
    errors = np.where(labelled, distance(found.points, truth), np.nan)
    lines = [line_errors(found, truth, labelled, line) for line in points.measurements]
    low = np.where(labelled[..., None], truth, np.inf).min(axis=1)
    high = np.where(labelled[..., None], truth, -np.inf).max(axis=1)
    return Errors(
        found=found,
        groups=records.groups,
        points=errors,
        lines=np.stack(lines, axis=1) if lines else np.zeros((len(found), 0)),
        reference=distance(low, high),
        present=labelled,
    )


def line_errors(
    found: Instances, truth: np.ndarray, labelled: np.ndarray, line: Measurement
) -> np.ndarray:
    """Returns [N] px, |measured - true length|, infinite where lost, NaN where not labelled."""
    _, a, b = line
    measured = distance(found.points[:, a], found.points[:, b])
    error = np.abs(measured - distance(truth[:, a], truth[:, b]))
    return np.where(labelled[:, a] & labelled[:, b], error, np.nan)

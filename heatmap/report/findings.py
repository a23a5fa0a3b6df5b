"""What an analysis finds, as plain data: the pages of a report show it and compute nothing.

Pixels are those of the original picture. "Right" means within a threshold times the reference
length of PCK, the diagonal of the extent of an instance's labelled points. Differences are taken
as first minus second.

Two ways to treat interchangeable points appear: ORDERED holds each prediction against its own
label, UNORDERED puts the labels of each pair in the order that suits the prediction better.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from heatmap.config import Config
from heatmap.keypoints import KeypointSet
from heatmap.predictions import Predictions

ORDERED, UNORDERED = "ordered", "unordered"

# The groups of failures, for a first and a second method.
FIRST_ONLY, SECOND_ONLY, BOTH_WRONG = "first_only", "second_only", "both_wrong"
BOTH_RIGHT = "both_right"

# The parts of an error budget, in the order in which they are shown.
DECODING, RESIZE, ROUNDING, REMAINDER = "decoding", "resize", "rounding", "model"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number with an interval about it; NaN where it cannot be known.

    Attributes:
      value: measured on all examples.
      low: lower end.
      high: upper end.
    """

    value: float
    low: float
    high: float

    def excludes(self, number: float = 0.0) -> bool:
        """Says whether a number lies outside; an unknown interval excludes nothing."""
        return self.low > number or self.high < number

    def contains(self, number: float) -> bool:
        """Says whether a number lies inside, ends included."""
        return self.low <= number <= self.high


@dataclasses.dataclass(frozen=True)
class Band:
    """A curve over thresholds with an interval at each.

    Attributes:
      thresholds: [T] ascending, shares of the reference length.
      value: [T].
      low: [T].
      high: [T].
    """

    thresholds: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, threshold: float) -> Interval:
        """Reads the curve at one of its thresholds.

        Raises:
          KeyError: if the threshold is not on the grid.
        """
        found = np.flatnonzero(np.isclose(self.thresholds, threshold, rtol=0, atol=1e-9))
        if not found.size:
            raise KeyError(threshold)
        i = int(found[0])
        return Interval(float(self.value[i]), float(self.low[i]), float(self.high[i]))


@dataclasses.dataclass(frozen=True)
class LogLine:
    """One line of a training log.

    Attributes:
      epoch: whole epochs seen.
      step: optimiser steps taken.
      train_loss: mean over the examples since the line before.
      val_loss: NaN where validation had nothing to measure.
    """

    epoch: int
    step: int
    train_loss: float
    val_loss: float


@dataclasses.dataclass(frozen=True)
class Method:
    """One finished run on one split, read from the files of its workdir.

    Attributes:
      name: unique among the methods compared; as free as a folder's name, so escape it.
      folder: the workdir.
      config: of the run.
      points: what the K points mean.
      scores: metrics.json, flat; None where nothing could be measured.
      log: the training log.
      predictions: N instances of the split; `sizes`, `boxes`, `areas`, `height` and `px_per_cm`
        are NaN, since the file of predictions does not hold them.
      errors: [N, K] px, ORDERED; NaN where not labelled, infinite where a prediction is lost.
      unordered_errors: [N, K] px, UNORDERED; equal to `errors` without interchangeable pairs.
      reference: [N] px, the reference length of PCK; 0 excludes an instance from PCK.
    """

    name: str
    folder: pathlib.Path
    config: Config
    points: KeypointSet
    scores: Mapping[str, float | None]
    log: tuple[LogLine, ...]
    predictions: Predictions
    errors: np.ndarray
    unordered_errors: np.ndarray
    reference: np.ndarray

    def errors_in(self, order: str) -> np.ndarray:
        """Returns [N, K] px, `errors` for ORDERED and `unordered_errors` for UNORDERED."""
        return {ORDERED: self.errors, UNORDERED: self.unordered_errors}[order]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of the config in which the methods differ.

    Attributes:
      field: dotted name.
      values: one for each method.
    """

    field: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Curve:
    """PCK of one method over thresholds, with a pointwise bootstrap band.

    Attributes:
      method: its name.
      order: ORDERED or UNORDERED.
      pck: shares in [0, 1].
    """

    method: str
    order: str
    pck: Band


@dataclasses.dataclass(frozen=True)
class PairedTest:
    """Two methods on the same examples: the difference, its interval and a p-value.

    The interval is a paired bootstrap over groups. The p-value is of the two-sided sign-flip test
    over groups: were the methods alike, each group's difference could as well have the other sign.

    Attributes:
      first: name of a method.
      second: name of the other.
      quantity: 'pck' or 'error_px' (the mean).
      order: ORDERED or UNORDERED.
      point: name of the keypoint, or '' for all.
      threshold: of PCK, NaN for 'error_px'.
      difference: first minus second.
      p: unadjusted.
      adjusted: after Holm's correction within the family: the tests on all points, or those on
        single points.
      groups: independent units, G.
      differing: how many of them differ at all between the methods.
      is_exact: whether all 2^differing signs were tried; a random sample otherwise.
      level: of the interval, such as 0.95.
    """

    first: str
    second: str
    quantity: str
    order: str
    point: str
    threshold: float
    difference: Interval
    p: float
    adjusted: float
    groups: int
    differing: int
    is_exact: bool
    level: float

    @property
    def better(self) -> str:
        """The method with the better number, clear or not; '' on a tie or where unknown."""
        sign = self.difference.value * (-1 if self.quantity == "error_px" else 1)
        if sign == 0 or math.isnan(sign):
            return ""
        return self.first if sign > 0 else self.second

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero and the adjusted p-value is below 1 - level."""
        return self.difference.excludes(0.0) and self.adjusted < 1 - self.level


@dataclasses.dataclass(frozen=True)
class KeypointErrors:
    """The errors of one method on one keypoint.

    Attributes:
      method: its name.
      point: the keypoint's name.
      count: labelled points.
      lost: those whose prediction is not finite; they are left out of the bias.
      mean: px.
      median: px.
      p95: px, 95th percentile.
      bias_x: px, mean of predicted - true; positive is to the right.
      bias_y: px; positive is down.
      slope: of the least-squares line of predicted over true coordinates, both axes together: 1
        where predictions follow the truth, 0 where they stay at their mean.
      pck: one for each quoted threshold.
    """

    method: str
    point: str
    count: int
    lost: int
    mean: Interval
    median: Interval
    p95: Interval
    bias_x: Interval
    bias_y: Interval
    slope: Interval
    pck: tuple[Interval, ...]


@dataclasses.dataclass(frozen=True)
class ImageRow:
    """One instance, for a table that can be sorted.

    Attributes:
      row: its row in every method's predictions.
      id: name of the picture; as free as a file's name, so escape it.
      instance: number of the instance in its picture.
      group: name of its group.
      error: [M] mean px of its labelled points, for each method.
      worst: [M] largest px.
      right: [M] share of its points that are right at `Comparison.threshold`.
      score: [M] mean score, NaN without one.
      entropy: [M] mean nats, NaN without any.
    """

    row: int
    id: str
    instance: int
    group: str
    error: tuple[float, ...]
    worst: tuple[float, ...]
    right: tuple[float, ...]
    score: tuple[float, ...]
    entropy: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """A point that at least one of two methods has wrong.

    Attributes:
      row: in the predictions of both.
      point: index of the keypoint.
      errors: px, (first, second).
      relative: the same as shares of the reference length.
      scores: (first, second), NaN without one.
      entropies: nats, (first, second), NaN without any.
    """

    row: int
    point: int
    errors: tuple[float, float]
    relative: tuple[float, float]
    scores: tuple[float, float]
    entropies: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Failures:
    """Who fails where, for two methods.

    Attributes:
      first: name of a method.
      second: name of the other.
      threshold: within which a point is right.
      counts: points in FIRST_ONLY right, SECOND_ONLY right, BOTH_WRONG and BOTH_RIGHT.
      cases: of the first three, worst first: by how much further off the wrong one is than the
        right one, or, if both are wrong, by the error of the better one.
    """

    first: str
    second: str
    threshold: float
    counts: Mapping[str, int]
    cases: Mapping[str, tuple[Case, ...]]


@dataclasses.dataclass(frozen=True)
class CalibrationBin:
    """Points with similar scores.

    Attributes:
      low: smallest score.
      high: largest.
      count: points.
      mean: mean score.
      median_error: px.
      right: share within the threshold.
    """

    low: float
    high: float
    count: int
    mean: float
    median_error: float
    right: Interval


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether what a map says of itself tells how far off its point is.

    Attributes:
      method: its name.
      signal: 'score' or 'entropy'.
      bins: of about equal counts, ascending.
      correlation: Spearman's rank correlation of the signal with the error; near -1 for a score
        that tells, near +1 for an entropy that tells.
      threshold: within which a point is right.
    """

    method: str
    signal: str
    bins: tuple[CalibrationBin, ...]
    correlation: Interval
    threshold: float


@dataclasses.dataclass(frozen=True)
class BudgetPart:
    """One source of error.

    Attributes:
      name: DECODING (truth encoded as the run's target and read by its decoder), RESIZE (original
        to input and back), ROUNDING (labels given in whole pixels) or REMAINDER.
      rmse: px, root of the mean squared distance. Squares add if the parts are independent; that
        of REMAINDER is what the squares of the others leave of the total.
      median: px; medians do not add. NaN for REMAINDER, which has no distances of its own.
      share: of the total mean square.
    """

    name: str
    rmse: float
    median: float
    share: float


@dataclasses.dataclass(frozen=True)
class Budget:
    """Where one method's error comes from.

    Attributes:
      method: its name.
      only_right: whether only points within the threshold count, so that gross errors do not
        drown the rest.
      count: points.
      rmse: px, of the method's errors.
      median: px.
      parts: in the order of the names above.
      stride: (x, y), heatmap pixel in original pixels, median over instances; NaN without maps.
    """

    method: str
    only_right: bool
    count: int
    rmse: float
    median: float
    parts: tuple[BudgetPart, ...]
    stride: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """Runs of a sweep that have the same settings, seeds apart.

    Attributes:
      settings: one text for each of the table's fields.
      runs: how many finished.
      means: for each of the table's metrics, the mean over runs.
      deviations: the same for the standard deviation between runs, NaN for a single run.
    """

    settings: tuple[str, ...]
    runs: int
    means: tuple[float, ...]
    deviations: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What a sweep shows.

    Attributes:
      name: of the sweep's folder.
      fields: dotted names of what was varied, the seed apart.
      metrics: names of scores, such as 'test/pck@0.05'.
      rows: in the order of the sweep.
      unfinished: names of runs without scores.
    """

    name: str
    fields: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[AblationRow, ...]
    unfinished: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that a report shows, but for pictures.

    Attributes:
      split: 'test', 'val' or 'train'.
      level: of all intervals, such as 0.95.
      quoted: thresholds of the PCK table.
      threshold: within which a point is right, for failures, calibration and rows.
      order: how keypoints, failures, calibration and rows treat interchangeable points: ORDERED,
        or UNORDERED where no picture shows the order.
      groups: independent units that were resampled, G.
      methods: M of them, at least one, with the same rows in the same order.
      settings: config fields in which they differ.
      curves: ORDERED for each method; then UNORDERED for each, if there are interchangeable pairs.
      ceiling: the best ORDERED PCK that any model can reach, with its sampling interval, or None
        where the order can be seen.
      tests: all pairs of methods.
      keypoints: M·K, method by method.
      images: N.
      failures: one for each pair of methods.
      calibrations: for each method with scores, by score and by entropy.
      budgets: two for each method; empty where the data were not at hand.
      ablations: one for each sweep that was given.
      text: {section: sentences}, generated from the numbers; plain text with names in it, so
        escape it. Sections: 'summary', 'curves', 'ceiling', 'keypoints', 'why',
        'failures', 'calibration', 'budget', 'training', 'ablation' (one for each of
        `ablations`), 'statistics'.
      command: the command line that trained all runs and made the report, if there was one.
    """

    split: str
    level: float
    quoted: tuple[float, ...]
    threshold: float
    order: str
    groups: int
    methods: tuple[Method, ...]
    settings: tuple[Setting, ...]
    curves: tuple[Curve, ...]
    ceiling: Band | None
    tests: tuple[PairedTest, ...]
    keypoints: tuple[KeypointErrors, ...]
    images: tuple[ImageRow, ...]
    failures: tuple[Failures, ...]
    calibrations: tuple[Calibration, ...]
    budgets: tuple[Budget, ...]
    ablations: tuple[Ablation, ...]
    text: Mapping[str, tuple[str, ...]]
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture of the split with what each method says.

    Everything is in pixels of `picture`, which is the input of the first method: an area of the
    original, resampled.

    Attributes:
      row: in every method's predictions.
      id: name of the picture; escape it.
      instance: number of the instance in its picture.
      picture: [H, W, C] uint8, one or three channels.
      truth: [K, 2] (x, y), NaN where not labelled.
      predicted: [M, K, 2].
      maps: for each method [h, w, K] float32 in [0, 1], ready to show, or None for a model that
        gives coordinates: a 'peak' map clipped, so that its height means something; a 'logits'
        map as probabilities over the largest of them.
      boxes: [M, 4] edges (x0, y0, x1, y1) of the area that each method's maps cover.
    """

    row: int
    id: str
    instance: int
    picture: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    maps: tuple[np.ndarray | None, ...]
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stage:
    """One method's maps of one validation picture at several moments of its training.

    Attributes:
      method: its name.
      id: name of the picture; escape it.
      picture: [H, W, C] uint8, the method's input, which the maps cover whole.
      truth: [K, 2] in its pixels, NaN where not labelled.
      steps: S, ascending.
      maps: [S, h, w, K], as in `Example` but each divided by its own largest value: early ones are
        faint, and it is their shape that is to be seen.
    """

    method: str
    id: str
    picture: np.ndarray
    truth: np.ndarray
    steps: tuple[int, ...]
    maps: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The pictures of a report.

    Attributes:
      samples: examples of the split, whatever the methods make of them.
      failures: {(first, second, group): examples}, worst case first, each picture once a group.
      stages: of each method that has kept maps.
    """

    samples: tuple[Example, ...]
    failures: Mapping[tuple[str, str, str], tuple[Example, ...]]
    stages: tuple[Stage, ...]

"""Scores of predicted points against labelled ones: PCK, pixel error, OKS average precision, lines.

Everything is measured in pixels of the original picture, lines in centimetres as well. A score is a
flat dictionary: a bare key such as `pck@0.05` is the number to quote, and what follows a slash
refines it (a point's name, `/median`, `/unordered`, `/ceiling`). Where records name their data set,
each is scored by itself too, under its name, and its species under theirs:
`hawaii/length_line_err_cm`, `hawaii/species/MECKON/length_line_err_cm`.

What cannot be measured because nothing was labelled is NaN. A prediction that is not finite counts
as infinitely far away, never as left out: it is wrong for PCK, has similarity 0 for OKS, and turns
the mean, RMSE and maximum of the pixel error to infinity while median and p95 stay informative.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from heatmap import geometry, measures, oks
from heatmap.config import EvalConfig
from heatmap.fields import choose
from heatmap.keypoints import KeypointSet, Pair
from heatmap.pairs import cheaper_order, order_ceiling
from heatmap.predictions import Predictions, interchange, mean, point_errors, summary


@dataclasses.dataclass(frozen=True)
class Metric:
    """A way to measure predictions, and how to read its numbers.

    Attributes:
      measure: maps (predictions, points, config) to a flat dictionary.
      names: regular expression of how all its names begin, behind a data set's.
      more_is_better: of every number that it yields; decides the best checkpoint.
      quoted: regular expression of the names that the printed table shows.
    """

    measure: Callable[[Predictions, KeypointSet, EvalConfig], dict[str, float]]
    names: str
    more_is_better: bool
    quoted: str


def better(value: float, than: float, name: str) -> bool:
    """Says whether a score beats another: anything beats NaN, and a loss should be low.

    Args:
      value: the new score.
      than: the old one.
      name: of both, such as 'val/pck@0.05' or 'val/hawaii/pck@0.05'.
    """
    if math.isnan(than):
        return True
    parts = name.split("/")[1:]
    families = (m for part in parts for m in METRICS.values() if re.match(m.names, part))
    family = next(families, None)
    return value > than if family and family.more_is_better else value < than


def is_quoted(name: str) -> bool:
    """Says whether the table shows a score, named without its split."""
    return name == "loss" or any(re.fullmatch(m.quoted, name) for m in METRICS.values())


def score(predictions: Predictions, points: KeypointSet, config: EvalConfig) -> dict[str, float]:
    """Measures everything that the config asks for.

    Args:
      predictions: N instances of one split.
      points: the meaning of their K points.
      config: `eval` of the config.

    Returns:
      Flat scores without the split's prefix.

    Raises:
      UserError: for an unknown name in `eval.metrics` or `eval.pck_references`.
    """
    scores = _measure(predictions, points, config)
    for dataset in np.unique(predictions.dataset[predictions.dataset != ""]):
        part = predictions.take(predictions.dataset == dataset)
        found = _measure(part, points, config)
        if "lines" in config.metrics:
            found |= measures.by_species(part, points, config)
        scores |= {f"{dataset}/{key}": value for key, value in found.items()}
    return scores


def _measure(predictions: Predictions, points: KeypointSet, config: EvalConfig) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name in config.metrics:
        scores |= choose(METRICS, name, "eval.metrics").measure(predictions, points, config)
    return scores


def bbox_reference(predictions: Predictions, points: KeypointSet) -> np.ndarray:
    """Returns [N] px, the diagonal of the extent of the labelled true points, 0 without any."""
    labelled = (predictions.weight > 0)[..., None]
    top = np.max(predictions.truth, axis=1, where=labelled, initial=-np.inf)
    bottom = np.min(predictions.truth, axis=1, where=labelled, initial=np.inf)
    return np.hypot(*np.maximum(top - bottom, 0.0).T)


def torso_reference(predictions: Predictions, points: KeypointSet) -> np.ndarray:
    """Returns [N] px, between the means of the torso's two groups, 0 where a label is missing."""
    first, second = (list(group) for group in points.torso)
    between = predictions.truth[:, first].mean(axis=1) - predictions.truth[:, second].mean(axis=1)
    labelled = (predictions.weight[:, first + second] > 0).all(axis=1)
    return np.where(labelled, np.hypot(*between.T), 0.0)


def image_reference(predictions: Predictions, points: KeypointSet) -> np.ndarray:
    """Returns [N] px, the diagonal of the picture."""
    return np.hypot(*predictions.sizes.T)


def pck(predictions: Predictions, points: KeypointSet, config: EvalConfig) -> dict[str, float]:
    """Measures the percentage of correct keypoints (Yang and Ramanan, TPAMI 2013), as a share.

    A labelled point is right if its prediction lies within threshold · reference length. Instances
    whose reference is zero (one labelled point, or an unlabelled torso) are left out and counted.

    Args:
      predictions: N instances.
      points: the meaning of their points.
      config: thresholds and reference lengths; `torso` is passed over if the points have none.

    Returns:
      For each threshold t `pck@t` (by bounding box), `pck_torso@t`, `pck_image@t`, the same with
      `/unordered`; by bounding box also `pck@t/<point>` and, where the order of pairs cannot be
      seen, `pck@t/ceiling` with `/low` and `/high`; `pck/excluded` instances, per reference.

    Raises:
      UserError: for an unknown name in `eval.pck_references`.
    """
    scores: dict[str, float] = {}
    orders = {"": predictions}
    if points.interchangeable_pairs:
        orders["/unordered"] = interchange(predictions, points)
    for name in config.pck_references:
        measure = choose(REFERENCES, name, "eval.pck_references")
        if name == "torso" and not points.torso:
            continue
        prefix = "pck" if name == "bbox" else f"pck_{name}"
        reference = measure(predictions, points)
        lost = (predictions.weight > 0).any(axis=1) & (reference <= 0)
        scores[f"{prefix}/excluded"] = float(lost.sum())
        for t in config.pck_thresholds:
            key = f"{prefix}@{t:g}"
            for suffix, ordered in orders.items():
                scores[key + suffix] = mean(_right(ordered, reference, t))
            if name == "bbox":
                right = _right(predictions, reference, t)
                for k, point in enumerate(points.names):
                    scores[f"{key}/{point}"] = mean(right[:, k])
                if not points.order_known:
                    truth, weight = predictions.truth, predictions.weight
                    best = order_ceiling(truth, weight, points, t, reference)
                    names = ("ceiling", "ceiling/low", "ceiling/high")
                    scores |= {f"{key}/{n}": v for n, v in zip(names, best, strict=True)}
    return scores


def error_px(predictions: Predictions, points: KeypointSet, config: EvalConfig) -> dict[str, float]:
    """Measures the distance in original-image pixels over all labelled points.

    Args:
      predictions: N instances.
      points: the meaning of their points.
      config: not read.

    Returns:
      `error_px` (mean) with `/median`, `/p95`, `/max`, `/rmse` (root of the mean squared distance),
      the same under `error_px/unordered` if there are interchangeable pairs, the mean per point as
      `error_px/<point>`, the number of `labelled_points`, and `oob_points_frac`, the share of them
      that lie out of bounds of their picture.
    """
    errors = point_errors(predictions)
    scores = {f"error_px/{name}": mean(errors[:, k]) for k, name in enumerate(points.names)}
    scores |= summary("error_px", errors)
    if points.interchangeable_pairs:
        scores |= summary("error_px/unordered", point_errors(interchange(predictions, points)))
    height, width = predictions.sizes.T[..., None]  # [N, 1] each
    outside = ~geometry.inside(predictions.truth, (height, width))
    labelled = predictions.weight > 0
    return scores | {
        "labelled_points": float(labelled.sum()),
        "oob_points_frac": mean(np.where(labelled, outside, np.nan)),
    }


def oks_ap(predictions: Predictions, points: KeypointSet, config: EvalConfig) -> dict[str, float]:
    """Measures average precision by object keypoint similarity, as COCO does.

    Equal to pycocotools' COCOeval for keypoints, all areas, at most 20 detections in an image
    (https://cocodataset.org/#keypoints-eval). Each instance is one detection, whose score is the
    mean of its points' (0 for one without a score). Detections with equal scores are ranked by
    picture and instance, so the order of the rows does not matter.

    Args:
      predictions: N instances.
      points: the meaning of their points, with `oks_sigmas`.
      config: not read.

    Returns:
      `oks_ap` (mean over similarities 0.5, 0.55, … 0.95), `oks_ap50`, `oks_ap75`, `oks_ar` (mean
      recall) and the same with `/unordered`; nothing if the points have no sigmas.
    """
    if not points.oks_sigmas:
        return {}
    scores = _average_precision(predictions, points, ())
    if points.interchangeable_pairs:
        unordered = _average_precision(predictions, points, points.interchangeable_pairs)
        scores |= {f"{key}/unordered": value for key, value in unordered.items()}
    return scores


def _average_precision(
    predictions: Predictions, points: KeypointSet, pairs: Sequence[Pair]
) -> dict[str, float]:
    """Scores all pictures; every label takes its cheaper order beside each detection."""
    sigmas = np.asarray(points.oks_sigmas)
    confidence = np.where(np.isfinite(predictions.score), predictions.score, 0.0).mean(axis=1)
    _, picture = np.unique(predictions.ids.astype(str), return_inverse=True)
    rows = np.lexsort((predictions.instances, picture))
    starts = np.flatnonzero(np.diff(picture[rows])) + 1
    images = []
    for here in np.split(rows, starts):
        truth, weight, box = (
            c[here] for c in (predictions.truth, predictions.weight, predictions.boxes)
        )
        detected = here[oks.top_detections(confidence[here])]
        predicted = predictions.predicted[detected][:, None]
        truth, weight = cheaper_order(predicted, truth, weight, pairs)
        similarity = oks.similarity(predicted, truth, weight, box, predictions.areas[here], sigmas)
        ignored = np.all(predictions.weight[here] <= 0, axis=1)
        images.append(oks.Image(similarity, confidence[detected], ignored))
    precision, recall = oks.precision_and_recall(images)
    return {
        "oks_ap": float(precision.mean()),
        "oks_ap50": float(precision[0]),
        "oks_ap75": float(precision[5]),
        "oks_ar": float(recall.mean()),
    }


def _right(predictions: Predictions, reference: np.ndarray, threshold: float) -> np.ndarray:
    """Returns [N, K], 1 right, 0 wrong, NaN where not labelled or without a reference length."""
    errors, reference = point_errors(predictions), reference[:, None]
    counted = ~np.isnan(errors) & (reference > 0)
    return np.where(counted, errors <= threshold * reference, np.nan)


REFERENCES: dict[str, Callable[[Predictions, KeypointSet], np.ndarray]] = {
    "bbox": bbox_reference,
    "torso": torso_reference,
    "image": image_reference,
}

METRICS = {
    "pck": Metric(pck, "pck", True, r"pck@[\d.]+(/unordered|/ceiling(/low|/high)?)?"),
    "error_px": Metric(error_px, "error_px", False, r"error_px(/unordered)?(/median|/p95|/max)?"),
    "oks_ap": Metric(oks_ap, "oks_a", True, r"oks_ap(/unordered)?"),
    "lines": Metric(
        measures.lines,
        r"point_err|.*line_err",
        False,
        r"([^/]+/)?(point_err_cm|[^/]+_line_err_(cm(/median)?|pct/median))",
    ),
}

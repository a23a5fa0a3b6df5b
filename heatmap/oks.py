"""COCO's keypoint evaluation: object keypoint similarity, matching, average precision.

Follows pycocotools' COCOeval (https://github.com/cocodataset/cocoapi, Lin et al., ECCV 2014,
arXiv:1405.0312) for keypoints and areas of all sizes, down to its order of ties.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # T similarities from which a detection is a hit
RECALLS = np.linspace(0.0, 1.0, 101)  # at which precision is read off
MAX_DETECTIONS = 20  # the most confident of one picture


@dataclasses.dataclass(frozen=True)
class Image:
    """One picture with D detections, the most confident first, and G labelled instances.

    Attributes:
      similarity: [D, G].
      confidence: [D].
      ignored: [G] bool, instances without any labelled point: a detection that matches one is
        neither right nor wrong.
    """

    similarity: np.ndarray
    confidence: np.ndarray
    ignored: np.ndarray


def top_detections(confidence: np.ndarray) -> np.ndarray:
    """Returns the indices of the at most 20 most confident of a picture's detections [D]."""
    return np.argsort(-confidence, kind="stable")[:MAX_DETECTIONS]


def similarity(
    predicted: np.ndarray,
    truth: np.ndarray,
    weight: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
    sigmas: np.ndarray,
) -> np.ndarray:
    """Computes OKS, the mean of exp(-d² / (2 · area · k²)) over labelled points, with k = 2σ.

    For an instance without labelled points, d is the distance to its box, grown by its own width
    and height on each side; so COCO finds out which detections to ignore.

    Args:
      predicted: [D, 1, K, 2] px; what is not finite has similarity 0.
      truth: [D, G, K, 2] px; the labels may be ordered differently for each detection.
      weight: [D, G, K], positive where labelled.
      boxes: [G, 4] edges, px.
      areas: [G] px².
      sigmas: [K].

    Returns:
      [D, G] in [0, 1].
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]  # [G, 1, 2]
    size = high - low
    outside = np.maximum(0.0, low - size - predicted) + np.maximum(0.0, predicted - high - size)
    labelled = weight > 0
    empty = np.logical_not(labelled.any(axis=-1, keepdims=True))
    delta = np.where(empty[..., None], outside, predicted - truth)
    scale = (2 * sigmas) ** 2 * (areas[:, None] + np.spacing(1)) * 2  # [G, K]
    exponent = np.sum(delta**2, axis=-1) / scale
    near = np.exp(-np.where(np.isfinite(exponent), exponent, np.inf))
    return near.mean(axis=-1, where=labelled | empty)


def precision_and_recall(images: Sequence[Image]) -> tuple[np.ndarray, np.ndarray]:
    """Pools the detections of all pictures by confidence and follows precision over recall.

    Args:
      images: in the order that decides between equal confidences.

    Returns:
      average precision [T], interpolated at 101 recalls, and the highest recall [T]; NaN if no
      picture holds an instance that counts.
    """
    instances = sum(int(np.sum(~image.ignored)) for image in images)
    if not instances:
        return np.full(len(THRESHOLDS), np.nan), np.full(len(THRESHOLDS), np.nan)
    ranked = np.argsort(-np.concatenate([image.confidence for image in images]), kind="stable")
    outcomes = [_match(image) for image in images]
    hits, misses = (np.concatenate(part, axis=1)[:, ranked] for part in zip(*outcomes, strict=True))
    hits, misses = np.cumsum(hits, axis=1), np.cumsum(misses, axis=1)
    recall = hits / instances
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # best from here on
    precision = np.pad(precision, ((0, 0), (0, 1)))  # a recall never reached has precision 0
    places = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    average = [row[place].mean() for row, place in zip(precision, places, strict=True)]
    return np.array(average), recall[:, -1]


def _match(image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Gives each detection, the most confident first, the most similar instance still free.

    Args:
      image: with D detections.

    Returns:
      right [T, D] and wrong [T, D]; a detection of an ignored instance is neither.
    """
    count, instances = image.similarity.shape
    free = np.ones((len(THRESHOLDS), instances), bool)
    right = np.zeros((len(THRESHOLDS), count), bool)
    wrong = np.ones((len(THRESHOLDS), count), bool)
    for d, similar in enumerate(image.similarity):
        # Instances that count come first, then the more similar, on a tie the later one.
        order = np.lexsort((-np.arange(instances), -similar, image.ignored))
        fits = free[:, order] & (similar[order] >= THRESHOLDS[:, None])
        matched = np.flatnonzero(fits.any(axis=1))
        chosen = order[fits[matched].argmax(axis=1)]
        free[matched, chosen] = False
        wrong[matched, d] = False
        right[matched, d] = ~image.ignored[chosen]
    return right, wrong

"""Which pictures to label next: those of which a model is unsure, and which differ from each other.

How far off a point may be, in pixels: the width of the map's peak over its score. A peak of half
the height, or with half of the probability, counts as one twice as wide. From above this nears the
distance L between two random places, which is that of an empty map: 1/√((score/width)² + 1/L²).
Models that vote, also in the mirror, are unsure where they differ: the peak of the average of their
maps is lower or wider there. Coordinates without maps have the spread of the single answers.

The uncertainty of a picture is the mean over its points, as a share of the diagonal of what the
network was shown, so that it depends neither on the size of the original nor on the extent of the
predicted points, which is wrong where they are.
"""

from typing import NamedTuple

import numpy as np

from heatmap.config import Config
from heatmap.inference import uncertainty
from heatmap.inference.instances import Instances

_LOST = 6**-0.5  # root mean square of the distance between two random places, over the diagonal
_NEAREST = 1e-6  # of the largest distance: nearer pictures count as the same


def expected_errors(found: Instances, config: Config) -> np.ndarray:
    """Returns [N, K] px, how far off each point may be as far as its model knows.

    Args:
      found: N instances.
      config: of the run.
    """
    lost = _LOST * diagonal(found, config)[:, None]
    score = np.where(np.isnan(found.score), 1.0, found.score)
    score = np.where(np.isfinite(found.points).all(axis=-1), score, 0.0)
    return 1 / np.hypot(score / uncertainty.spread(found), 1 / lost)


def diagonal(found: Instances, config: Config) -> np.ndarray:
    """Returns [N] px, of the area of its picture that the network was shown."""
    height, width = config.data.image_size
    return np.hypot(found.unit[:, 0] * width, found.unit[:, 1] * height)


def uncertainties(found: Instances, config: Config) -> np.ndarray:
    """Returns [N], the mean over points of how far off they may be, as a share of the diagonal."""
    return expected_errors(found, config).mean(axis=1) / diagonal(found, config)


class Choice(NamedTuple):
    """Pictures to label, the first one first.

    Attributes:
      rows: [M] of the candidates.
      clusters: [M] from 1, by rank: pictures of one look alike to the network.
    """

    rows: np.ndarray
    clusters: np.ndarray


def choose(
    features: np.ndarray,
    uncertainty_of: np.ndarray,
    count: int,
    centres: np.ndarray | None = None,
) -> Choice:
    """Picks pictures one by one: the largest product of uncertainty and distance from all picked.

    The first is the most uncertain one, unless some are picked already. A picture like one that is
    on the list is worth little, however uncertain, so that every beginning of the list is diverse:
    a weighted form of the greedy k-center of core sets (Sener and Savarese, ICLR 2018,
    arXiv:1708.00489). Of those that equal a picked one the most uncertain come first, after all
    others; otherwise equal ones come in the order in which they are given.

    Args:
      features: [N, F].
      uncertainty_of: [N], positive.
      count: how many to pick, if there are so many.
      centres: [L, F] of pictures that are picked already, those with labels; or None.
    """
    features = np.asarray(features, np.float32)
    value = np.array(uncertainty_of, np.float64)
    nearest, least = np.full(len(value), np.inf), 0.0
    if centres is not None and len(centres):
        nearest, furthest = _nearest(features, centres)
        least = max(_NEAREST * furthest, np.finfo(float).tiny)
        nearest = np.maximum(nearest, least)
        value = uncertainty_of * nearest
    rows: list[int] = []
    while len(rows) < min(count, len(value)):
        rows.append(int(value.argmax()))
        apart = np.linalg.norm(features - features[rows[-1]], axis=1)
        least = least or max(_NEAREST * apart.max(), np.finfo(float).tiny)
        nearest = np.minimum(nearest, np.maximum(apart, least))
        value = uncertainty_of * nearest
        value[rows] = -1.0
    return Choice(np.array(rows, int), _clusters(features, np.array(rows, int)))


def _nearest(features: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the distance [N] to the nearest of some centres, and the largest to any."""
    nearest, furthest = np.full(len(features), np.inf), 0.0
    for centre in np.asarray(centres, np.float32):  # of N × L × F numbers only N × F at a time
        apart = np.linalg.norm(features - centre, axis=1)
        nearest, furthest = np.minimum(nearest, apart), max(furthest, float(apart.max()))
    return nearest, furthest


def _clusters(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Groups all candidates by k-means, a fifth as many groups as rows, and numbers them by rank.

    The first rows are far from each other and begin as the centres.
    """
    from scipy.cluster import vq

    scaled = features / (features.std() or 1.0)  # as the threshold that ends k-means expects it
    centres, _ = vq.kmeans(scaled, np.unique(scaled[rows[: -(-len(rows) // 5)]], axis=0))
    labels, _ = vq.vq(scaled[rows], centres)
    order = dict.fromkeys(labels.tolist())
    number = {label: place for place, label in enumerate(order, start=1)}
    return np.array([number[label] for label in labels.tolist()], int)

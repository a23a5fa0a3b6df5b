"""Which pictures to label next: those of which a model is unsure, and which differ from each other.

The uncertainty of a picture is the error that its model has reason to expect, as a share of the
diagonal of what the network was shown. Of each point, to the second moment,

    E = s·V + (1 - s)·D²/6 + A

with the share s of a whole peak where the point was found (`decoding.share`), the variance V of the
map round it, the diagonal D (D²/6 is the mean square of the distance between two random places: the
part of a map that is elsewhere, or missing, could be anywhere), and the variance A of the single
answers of several models, or of the picture and its mirror image. It is measured in pictures of the
network's input, whatever the size of the originals; not in extents of the predicted points, which
are wrong where the points are.
"""

from typing import NamedTuple

import numpy as np

from heatmap.config import Config
from heatmap.inference import uncertainty
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Examined

_LOST = 1 / 6  # mean square of the distance between two random places in a box, over D²
_NEAREST = 1e-6  # of the largest distance: nearer pictures count as the same


def expected_squares(found: Instances, examined: Examined, config: Config) -> np.ndarray:
    """Returns [N, K] px², the squared error that is to be expected of each point, E above.

    Args:
      found: N instances.
      examined: what it was made of, on the host.
      config: of the run.
    """
    known = np.isfinite(found.points).all(axis=-1)
    # A network without maps says of its peaks nothing, neither good nor bad.
    share = np.where(known, np.nan_to_num(examined.share, nan=1.0), 0.0)
    variance = np.trace(uncertainty.covariances(found), axis1=-2, axis2=-1)
    apart = (np.asarray(examined.apart, np.float64) * found.unit[:, None] ** 2).sum(axis=-1)
    variance, apart = (np.where(known, values, 0.0) for values in (variance, apart))
    lost = _LOST * diagonal(found, config)[:, None] ** 2
    return share * variance + (1 - share) * lost + apart


def diagonal(found: Instances, config: Config) -> np.ndarray:
    """Returns [N] px, of the area of its picture that the network was shown."""
    height, width = config.data.image_size
    return np.hypot(found.unit[:, 0] * width, found.unit[:, 1] * height)


def uncertainties(found: Instances, examined: Examined, config: Config) -> np.ndarray:
    """Returns [N], the root of the mean over points, as a share of the diagonal."""
    square = expected_squares(found, examined, config).mean(axis=1)
    return np.sqrt(square) / diagonal(found, config)


class Choice(NamedTuple):
    """Pictures to label, the first one first.

    Attributes:
      rows: [M] of the candidates.
      clusters: [M] from 1, by rank: pictures of one look alike to the network.
    """

    rows: np.ndarray
    clusters: np.ndarray


def choose(features: np.ndarray, uncertainty_of: np.ndarray, count: int) -> Choice:
    """Picks pictures one by one: the largest product of uncertainty and distance from all picked.

    The first is the most uncertain one. A picture like one that is on the list is worth little,
    however uncertain, so that every beginning of the list is diverse: a weighted form of the greedy
    k-center of core sets (Sener and Savarese, ICLR 2018, arXiv:1708.00489). Of those that equal
    a picked one the most uncertain come first, after all others; otherwise equal ones come in the
    order in which they are given.

    Args:
      features: [N, F].
      uncertainty_of: [N], positive.
      count: how many to pick, if there are so many.
    """
    features = np.asarray(features, np.float32)
    value = np.array(uncertainty_of, np.float64)
    nearest = np.full(len(value), np.inf)
    rows: list[int] = []
    while len(rows) < min(count, len(value)):
        rows.append(int(value.argmax()))
        apart = np.linalg.norm(features - features[rows[-1]], axis=1)
        if len(rows) == 1:
            least = max(_NEAREST * apart.max(), np.finfo(float).tiny)
        nearest = np.minimum(nearest, np.maximum(apart, least))
        value = uncertainty_of * nearest
        value[rows] = -1.0
    return Choice(np.array(rows, int), _clusters(features, np.array(rows, int)))


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

"""The order of interchangeable pairs: the cheaper one, and what not seeing it costs a score."""

from collections.abc import Sequence

import numpy as np

from heatmap.keypoints import KeypointSet, Pair


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns [...] px between points [..., 2], infinite where one is not finite."""
    between = a - b
    length = np.hypot(between[..., 0], between[..., 1])
    return np.where(np.isfinite(length), length, np.inf)


def cheaper_order(
    predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray, pairs: Sequence[Pair]
) -> tuple[np.ndarray, np.ndarray]:
    """Takes, once per pair, the order with the smaller summed distance over labelled points.

    A label moves together with its weight, so that a pair with one labelled point is compared with
    either prediction. Fewer infinite distances come first, then the sum of the finite ones: a pair
    with one lost prediction is still ordered by the other. On a tie the order stays.

    Args:
      predicted: [..., K, 2].
      truth: [..., K, 2]; leading axes broadcast against those of `predicted`.
      weight: [..., K], of the truth.
      pairs: pairs of indices, no index twice.

    Returns:
      truth [..., K, 2] and weight [..., K], copies.
    """
    shape = np.broadcast_shapes(predicted.shape, truth.shape)
    truth = np.broadcast_to(truth, shape).copy()
    weight = np.broadcast_to(weight, shape[:-1]).copy()
    for a, b in pairs:
        kept, swapped = [a, b], [b, a]
        costs = []
        for order in (kept, swapped):
            apart = distance(predicted[..., kept, :], truth[..., order, :])
            counted, finite = weight[..., order] > 0, np.isfinite(apart)
            costs += [np.sum(counted & ~finite, axis=-1)]
            costs += [np.sum(apart, axis=-1, where=counted & finite)]
        lost, total, lost_swapped, total_swapped = costs
        swap = (lost_swapped < lost) | ((lost_swapped == lost) & (total_swapped < total))
        swap = swap[..., None]
        weight[..., kept] = np.where(swap, weight[..., swapped], weight[..., kept])
        swap = swap[..., None]
        truth[..., kept, :] = np.where(swap, truth[..., swapped, :], truth[..., kept, :])
    return truth, weight


def order_ceiling(
    truth: np.ndarray,
    weight: np.ndarray,
    points: KeypointSet,
    threshold: float,
    reference: np.ndarray,
) -> tuple[float, float, float]:
    """Says what order-aware PCK the best model can reach where nothing shows the order of a pair.

    With d = threshold · reference: two true points up to 2d apart are both right if both are
    predicted at their midpoint. Further apart, no place is right for both, so each is right with
    probability at most 1/2 and one of the two is right in expectation. The spread assumes a model
    that picks an order, independently for each pair: both right or both wrong, a variance of 1
    (predicting one point twice has the same mean and no variance). All other points count as right,
    as does the only labelled one of a pair: both predictions may be placed on it.

    Args:
      truth: [N, K, 2] px.
      weight: [N, K], positive where labelled.
      points: with the interchangeable pairs.
      threshold: of PCK.
      reference: [N] px; instances with zero are left out.

    Returns:
      The expected PCK and its central 95 % interval (normal approximation, within [0, 1]).
    """
    counted = (weight > 0) & (reference > 0)[:, None]
    total = int(counted.sum())
    if not total:
        return np.nan, np.nan, np.nan
    guesses = 0
    for a, b in points.interchangeable_pairs:
        apart = distance(truth[:, a], truth[:, b]) > 2 * threshold * reference
        guesses += int(np.sum(apart & counted[:, a] & counted[:, b]))
    mean, spread = 1 - guesses / total, 1.96 * np.sqrt(guesses) / total
    return mean, float(max(mean - spread, 0.0)), float(min(mean + spread, 1.0))

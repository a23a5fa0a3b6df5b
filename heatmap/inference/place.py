"""Where a point may be as far as its map knows: the map's covariance without the targets' own.

At the optimum of either loss a map is the average of the target Gaussians at all the places where
the point may be. Were it not cut off, its variance were σ² + s², with s² that of the place. But
`decoding.covariance` sees a window of three σ each way round the largest pixel, which takes up to
two per cent of the target's own variance away, as much as s = σ/8 adds. So we ask which σ² + s²
would look as wide in that window, averaged over where in its pixel the peak lies. What that
position alone does to the width is the least s² that is stated: it cannot be told from nothing.

It is the network's own estimate: a map that is one per cent too wide says s = σ/7.
"""

import functools

import numpy as np

from heatmap import decoding
from heatmap.config import Config
from heatmap.inference.instances import Instances

_POSITIONS = 64  # of the peak in its pixel
_VARIANCES = 400  # that are tried
# Of the variance of a window that is filled evenly, where s is 2.2 σ or more. Beyond it the window
# hardly tells widths apart, and what it takes away counts as the same share.
_WIDEST = 0.8


def covariances(found: Instances, config: Config) -> np.ndarray:
    """Returns [N, K, 2, 2] px² of the picture, of where each point is, not calibrated.

    It is too little where a peak overflows its window or the border of the map cuts it off. NaN
    where there are no maps.
    """
    size, maps = config.data.image_size, config.targets.heatmap_size
    strides = np.array([size[1] / maps[1], size[0] / maps[0]])
    cell = (strides * found.unit)[:, None]  # [N, 1, 2] pixels of the picture to one of the map
    areas = cell[..., :, None] * cell[..., None, :]
    seen, variance, least = _widths(config.targets.sigma)
    wide = np.nan_to_num(found.covariance / areas)
    # The window cuts along its own sides; what it does to the correlation is less.
    along = np.diagonal(wide, axis1=-2, axis2=-1)  # [N, K, 2]
    grown = np.sqrt(np.interp(along, seen, variance / seen))
    whole = wide * grown[..., :, None] * grown[..., None, :]
    values, vectors = np.linalg.eigh(whole - config.targets.sigma**2 * np.eye(2))
    left = np.maximum(values, least)
    known = np.einsum("...ij,...j,...kj->...ik", vectors, left, vectors) * areas
    return np.where(np.isnan(found.covariance), np.nan, known)


@functools.cache
def _widths(sigma: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Tabulates how wide Gaussians look in the window, along one axis.

    Args:
      sigma: of the targets, in pixels of the map.

    Returns:
      (variances that are seen [V], ascending; those of the Gaussians that look so, from σ² on; by
      how much at most the target alone is seen wider than on average), in pixels of the map
      squared.
    """
    radius = decoding.covariance_radius(sigma)
    pixels = np.arange(-radius, radius + 1)
    offsets = (np.arange(_POSITIONS) + 0.5) / _POSITIONS - 0.5
    # An even window has the variance radius·(radius + 1)/3; a Gaussian twice as wide looks so.
    variance = np.geomspace(sigma**2, 4 * (radius + 1) ** 2, _VARIANCES)
    apart = (pixels - offsets[:, None]) ** 2
    weights = np.exp(-apart / (2 * variance[:, None, None]))  # [V, positions, pixels]
    weights /= weights.sum(axis=-1, keepdims=True)
    seen = weights @ pixels**2 - (weights @ pixels) ** 2  # [V, positions]
    mean = seen.mean(axis=1)
    told = mean <= _WIDEST * radius * (radius + 1) / 3
    return mean[told], variance[told], float(seen[0].max() - mean[0])

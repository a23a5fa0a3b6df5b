"""Gaussian target maps: one formula for the host (tf.data) and the device (inside the step).

The map of a point is an unnormalised Gaussian with peak 1 (Tompson et al., NeurIPS 2014; sampled
at pixel centres without rounding the point, as in Zhang et al., CVPR 2020, arXiv:1910.06278):

    G[i, j] = exp(-((j - hx)² + (i - hy)²) / (2 σ²))

with (hx, hy) in heatmap pixels by the half-pixel rule of `geometry`. A point beyond the border
leaves only its tail on the grid: nothing is clipped or moved.
"""

from heatmap import geometry
from heatmap.config import Config, TargetsConfig

_REFERENCE_SIGMA = 2.0  # whose maps keep the height one when all have its energy


def gaussian(xp, keypoints, input_size, heatmap_size, sigma):
    """Renders the target maps of a batch of points.

    Args:
      xp: the array module to compute with: numpy, jax.numpy or tensorflow.experimental.numpy.
      keypoints: [..., K, 2] float32, (x, y) in pixels of the network's input.
      input_size: (height, width) of the input.
      heatmap_size: (height, width) of the maps.
      sigma: standard deviation in heatmap pixels.

    Returns:
      [..., h, w, K] in the precision of `keypoints`, peak 1.
    """
    height, width = heatmap_size
    stride_x, stride_y = input_size[1] / width, input_size[0] / height
    hx = geometry.scale(keypoints[..., 0], 1.0 / stride_x)  # [..., K]
    hy = geometry.scale(keypoints[..., 1], 1.0 / stride_y)
    columns = xp.arange(width, dtype=keypoints.dtype)[:, None]  # [w, 1]
    rows = xp.arange(height, dtype=keypoints.dtype)[:, None]
    # A Gaussian is separable: h + w exponentials a point instead of h·w.
    across = xp.exp(-((columns - hx[..., None, :]) ** 2) / (2.0 * sigma**2))  # [..., w, K]
    down = xp.exp(-((rows - hy[..., None, :]) ** 2) / (2.0 * sigma**2))  # [..., h, K]
    return down[..., :, None, :] * across[..., None, :, :]


def peak(config: TargetsConfig) -> float:
    """Returns the height of a target's peak.

    It is one, or with `targets.equal_energy` falls with σ so that the sum of the squared map,
    π σ² peak², does not depend on σ: a sweep over σ then compares widths, not sizes of the loss.
    """
    return _REFERENCE_SIGMA / config.sigma if config.equal_energy else 1.0


def render(xp, keypoints, config: Config):
    """Renders the target maps that a config asks for.

    Args:
      xp: as in `gaussian`.
      keypoints: [..., K, 2] in pixels of the network's input.
      config: its `data.image_size` and `targets` apply.

    Returns:
      [..., h, w, K].
    """
    size, maps = config.data.image_size, config.targets.heatmap_size
    return peak(config.targets) * gaussian(xp, keypoints, size, maps, config.targets.sigma)

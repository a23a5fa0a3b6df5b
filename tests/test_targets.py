"""The Gaussian maps against the formula written out, in all three array modules."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from heatmap import targets
from tests.helpers import properties

CASES = [  # (input size, heatmap size, sigma): square, not square, fractional and uneven strides
    ((64, 64), (16, 16), 2.0),
    ((48, 96), (12, 24), 1.0),
    ((35, 28), (10, 8), 1.5),
    ((30, 64), (12, 16), 3.0),
]


def by_hand(keypoints, input_size, heatmap_size, sigma):
    """One value at a time, in float64."""
    maps = np.zeros((len(keypoints), *heatmap_size, keypoints.shape[1]))
    for b, i, j, k in np.ndindex(maps.shape):
        x, y = (float(v) for v in keypoints[b, k])
        hx = (x + 0.5) * heatmap_size[1] / input_size[1] - 0.5
        hy = (y + 0.5) * heatmap_size[0] / input_size[0] - 0.5
        maps[b, i, j, k] = np.exp(-((j - hx) ** 2 + (i - hy) ** 2) / (2 * sigma**2))
    return maps


def points_in_and_round(size):
    """Points in the interior, on the corners, a little beyond the border and far away."""
    height, width = size
    return np.array(
        [
            [[0.3 * width, 0.61 * height], [-0.5, -0.5], [width - 0.5, height - 0.5]],
            [[-3.7, 0.5 * height], [width + 2.2, height + 9.0], [-500.0, 40.0]],
        ],
        np.float32,
    )


@tf.function
def inside_tf_function(keypoints, input_size, heatmap_size, sigma):
    return targets.gaussian(tf.experimental.numpy, keypoints, input_size, heatmap_size, sigma)


@pytest.mark.parametrize("module", ["numpy", "jax", "tensorflow"])
@pytest.mark.parametrize(("input_size", "heatmap_size", "sigma"), CASES)
def test_every_array_module_gives_the_formula(module, input_size, heatmap_size, sigma):
    keypoints = points_in_and_round(input_size)
    arguments = (input_size, heatmap_size, sigma)
    if module == "tensorflow":
        maps = inside_tf_function(tf.constant(keypoints), *arguments).numpy()
    else:
        maps = np.asarray(
            targets.gaussian({"numpy": np, "jax": jnp}[module], keypoints, *arguments)
        )
    assert maps.dtype == np.float32
    assert maps.shape == (2, *heatmap_size, 3)
    np.testing.assert_allclose(maps, by_hand(keypoints, *arguments), atol=1e-6)


@properties
@given(
    input_size=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    heatmap_size=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    sigma=st.floats(0.3, 5.0),
    x=st.floats(-60, 90),
    y=st.floats(-60, 90),
)
def test_formula_holds_for_any_size_sigma_and_position(input_size, heatmap_size, sigma, x, y):
    keypoints = np.array([[[x, y]]])
    maps = targets.gaussian(np, keypoints, input_size, heatmap_size, sigma)
    assert maps.dtype == np.float64  # the precision of the keypoints
    np.testing.assert_allclose(
        maps, by_hand(keypoints, input_size, heatmap_size, sigma), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("input_size", "heatmap_size", "sigma"), CASES)
def test_peak_is_one_at_the_exact_position_and_nowhere_more(input_size, heatmap_size, sigma):
    row, column = 4, 6
    x = (column + 0.5) * input_size[1] / heatmap_size[1] - 0.5
    y = (row + 0.5) * input_size[0] / heatmap_size[0] - 0.5
    maps = targets.gaussian(np, np.array([[[x, y]]]), input_size, heatmap_size, sigma)[0, ..., 0]
    assert maps[row, column] == pytest.approx(1.0, abs=1e-12)
    assert np.unravel_index(maps.argmax(), maps.shape) == (row, column)


def test_leading_axes_are_free():
    keypoints = np.random.default_rng(0).uniform(0, 30, (2, 3, 5, 2))
    maps = targets.gaussian(np, keypoints, (32, 32), (8, 10), 1.0)
    assert maps.shape == (2, 3, 8, 10, 5)
    one = targets.gaussian(np, keypoints[1, 2], (32, 32), (8, 10), 1.0)
    np.testing.assert_array_equal(maps[1, 2], one)


@pytest.mark.parametrize("stride", [2, 4])
def test_map_is_the_shrunken_picture_of_a_blob(stride):
    """Drawing a blob on the input and averaging blocks moves its centre where the map's is."""
    size, sigma = (32 * stride, 32 * stride), 3.0
    keypoints = np.array([[[15.3 * stride, 17.8 * stride]]])
    blob = targets.gaussian(np, keypoints, size, size, sigma * stride)[0, ..., 0]
    shrunk = blob.reshape(32, stride, 32, stride).mean((1, 3))
    drawn = targets.gaussian(np, keypoints, size, (32, 32), sigma)[0, ..., 0]
    for axis in (0, 1):
        centres = [(m.sum(axis) * np.arange(32)).sum() / m.sum() for m in (shrunk, drawn)]
        assert centres[0] == pytest.approx(centres[1], abs=1e-3)

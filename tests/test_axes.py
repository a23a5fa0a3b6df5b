"""The evaluation affine by axes, against the matrices that evaluation itself composes."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import axes, geometry
from input_pipeline import augment
from tests.helpers import make_config, properties

INPUTS = st.sampled_from([(32, 32), (48, 80), (224, 224), (256, 192)])
SIDES = st.integers(3, 5000)


def data(size, fit="stretch"):
    return make_config(**{"data.image_size": size, "data.fit": fit, "data.crop": "box"}).data


def of_matrices(box, size, config, alone):
    """What evaluation hands to `warp`, and the way back, from the matrices."""
    source = augment.source_box(box, size, config, alone)
    affine = geometry.crop_and_resize(source, config.image_size)
    return *augment.warp_parameters(affine), geometry.invert(affine)


def assert_same(down, across, expected, pixels=1e-6):
    factors, transform, original_from_input = expected
    assert (int(down.factor), int(across.factor)) == tuple(factors)
    places = [across.step, 0, across.start, 0, down.step, down.start, 0, 0]
    np.testing.assert_allclose(places, transform, rtol=3e-7, atol=pixels)
    back = np.array(axes.original_from_input(down, across), np.float64)
    np.testing.assert_allclose(back, original_from_input, rtol=1e-6, atol=max(pixels, 2e-4))


@properties
@given(height=SIDES, width=SIDES, size=INPUTS, fit=st.sampled_from(["stretch", "pad"]))
def test_a_whole_picture_is_read_as_evaluation_reads_it(height, width, size, fit):
    config = make_config(**{"data.image_size": size, "data.fit": fit, "data.crop": "image"}).data
    picture = (height, width)
    expected = of_matrices(geometry.image_box(picture), picture, config, True)
    for xp in (np, jnp):  # in double precision and in single
        sides = (xp.asarray(side, xp.int32) for side in picture)
        assert_same(*axes.of_picture(*sides, config, xp), expected)


@pytest.mark.parametrize("size", [(64, 64), (96, 128), (128, 64), (640, 64)])
def test_a_whole_factor_is_not_missed(size):
    """An exact multiple is where rounding could choose the factor below."""
    config = make_config(**{"data.image_size": (32, 32), "data.crop": "image"}).data
    down, across = axes.of_picture(*(jnp.int32(side) for side in size), config, jnp)
    assert (int(down.factor), int(across.factor)) == (size[0] // 32, size[1] // 32)
    assert (float(down.start), float(across.start)) == (0, 0)
    assert (float(down.step), float(across.step)) == (1, 1)


@properties
@given(
    corner=st.tuples(st.floats(-20, 900), st.floats(-20, 900)),
    sides=st.tuples(st.floats(2, 900), st.floats(2, 900)),
    size=INPUTS,
)
def test_a_box_is_read_as_evaluation_reads_it(corner, sides, size):
    box = np.float32([*corner, corner[0] + sides[0], corner[1] + sides[1]]).astype(np.float64)
    expected = of_matrices(box, (1000, 1000), data(size), False)
    assert_same(*axes.of_box(box, data(size), np), expected)
    # Edges of a thousand pixels have four decimals in single precision.
    single = axes.of_box(jnp.asarray(box, jnp.float32), data(size), jnp)
    assert_same(*single, expected, pixels=3e-4)

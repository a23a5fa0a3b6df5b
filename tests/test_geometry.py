"""The coordinate convention: affines against arrays that really moved, and the whole way round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import geometry, targets
from tests.helpers import decode, make_config, properties

SIZE = (6, 8)  # (height, width)
SQUARE = (7, 7)


def coordinates_of(size):
    """An image [h, w, 2] whose every pixel holds its own (x, y)."""
    return np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), axis=-1).astype(float)


def block_mean(image, fy, fx):
    height, width, channels = image.shape
    return image.reshape(height // fy, fy, width // fx, fx, channels).mean((1, 3))


# (source size, what NumPy does to the pixels, the affine that must describe it)
MOVES = {
    "nothing": (SIZE, lambda im: im, np.eye(3)),
    "resize to the same size": (SIZE, lambda im: im, geometry.resize(SIZE, SIZE)),
    "halve": (SIZE, lambda im: block_mean(im, 2, 2), geometry.resize(SIZE, (3, 4))),
    "shrink unevenly": (SIZE, lambda im: block_mean(im, 3, 2), geometry.resize(SIZE, (2, 4))),
    "scaling": (SIZE, lambda im: block_mean(im, 3, 2), geometry.scaling(1 / 2, 1 / 3)),
    "crop": (
        SIZE,
        lambda im: im[1:5, 2:8],
        geometry.crop_and_resize((1.5, 0.5, 7.5, 4.5), (4, 6)),
    ),
    "crop and shrink": (
        SIZE,
        lambda im: block_mean(im[1:5, 2:8], 4, 3),
        geometry.crop_and_resize((1.5, 0.5, 7.5, 4.5), (1, 2)),
    ),
    "whole image as a crop": (
        SIZE,
        lambda im: block_mean(im, 2, 4),
        geometry.crop_and_resize(geometry.image_box(SIZE), (3, 2)),
    ),
    "horizontal flip": (SIZE, lambda im: im[:, ::-1], geometry.horizontal_flip(SIZE[1])),
    "vertical flip": (SIZE, lambda im: im[::-1], geometry.vertical_flip(SIZE[0])),
    "quarter turn clockwise": (
        SQUARE,
        lambda im: np.rot90(im, -1),
        geometry.rotation(np.pi / 2, SQUARE),
    ),
    "quarter turn back": (SQUARE, lambda im: np.rot90(im), geometry.rotation(-np.pi / 2, SQUARE)),
    "zoom by -1": (SIZE, lambda im: np.rot90(im, 2), geometry.zoom(-1.0, SIZE)),
    "half turn": (SIZE, lambda im: np.rot90(im, 2), geometry.rotation(np.pi, SIZE)),
    "crop, then flip": (
        SIZE,
        lambda im: im[1:5, 2:8][:, ::-1],
        geometry.compose(
            geometry.horizontal_flip(6), geometry.crop_and_resize((1.5, 0.5, 7.5, 4.5), (4, 6))
        ),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_affine_moves_points_as_numpy_moves_pixels(name):
    size, move, affine = MOVES[name]
    came_from = move(coordinates_of(size))  # where each destination pixel was, on average
    now_at = geometry.apply(affine, came_from.reshape(-1, 2)).reshape(came_from.shape)
    np.testing.assert_allclose(now_at, coordinates_of(came_from.shape[:2]), atol=1e-12)


@pytest.mark.parametrize("factor", [0.25, 1 / 3.5, 0.5, 1.0, 3.0])
def test_resize_keeps_edges_on_edges(factor):
    assert geometry.scale(-0.5, factor) == pytest.approx(-0.5)
    assert geometry.scale(41.5, factor) == pytest.approx(42 * factor - 0.5)
    matrix = geometry.scaling(factor, 1.0)
    np.testing.assert_allclose(
        geometry.apply(matrix, np.array([[7.0, 2.0]]))[0, 0], 7.5 * factor - 0.5
    )


def test_rescale_is_the_resize_affine():
    points = np.random.default_rng(0).uniform(-3, 30, (5, 4, 2))
    by_affine = geometry.apply(geometry.resize((21, 30), (6, 40)), points)
    np.testing.assert_allclose(geometry.rescale(points, (21, 30), (6, 40)), by_affine, atol=1e-12)


def test_normalise_puts_edges_at_zero_and_one_and_denormalise_inverts_it():
    points = np.array([[-0.5, -0.5], [29.5, 20.5], [14.5, 10.0]])
    unit = geometry.normalise(points, (21, 30))
    np.testing.assert_allclose(unit, [[0, 0], [1, 1], [0.5, 0.5]])
    np.testing.assert_allclose(geometry.denormalise(unit, (21, 30)), points)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((-0.5, -0.5), True),
        ((7.5, 5.5), True),
        ((-0.51, 0), False),
        ((0, -0.51), False),
        ((7.51, 0), False),
        ((0, 5.51), False),
        ((5.6, 5.4), True),
        ((5.4, 5.6), False),
    ],
)
def test_inside_includes_the_edges(point, expected):
    assert bool(geometry.inside(np.array(point), SIZE)) is expected


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (3, 0, 2, 5), (0, 5, 5, 5), (0, 0, float("nan"), 5)])
def test_a_crop_without_area_is_refused(box):
    with pytest.raises(ValueError, match="positive extent"):
        geometry.crop_and_resize(box, SIZE)


def test_of_many_crops_the_one_without_area_is_named():
    boxes = np.array([[[0, 0, 4, 5], [1, 1, 3, 3]], [[3, 0, 2.5, 5], [0, 0, 1, 1]]])
    with pytest.raises(ValueError, match=r"got \(3\.0, 0\.0, 2\.5, 5\.0\)"):
        geometry.crop_and_resize(boxes, SIZE)


def test_zoom_is_about_the_centre():
    centre, points = np.array([3.5, 2.5]), np.array([[0.0, 0.0], [7.0, 1.5], [3.5, 2.5]])
    for factor in (0.3, 1.0, 2.5):
        moved = geometry.apply(geometry.zoom(factor, SIZE), points)
        np.testing.assert_allclose(moved - centre, factor * (points - centre), atol=1e-12)


BY_BOX = {
    "crop_and_resize": lambda box: geometry.crop_and_resize(box, SIZE),
    "fit_box": lambda box: geometry.fit_box(box, SIZE),
    "pad_box": lambda box: geometry.pad_box(box, 1.25),
    "image_box": lambda box: geometry.image_box(box[..., 2:]),
    "scaling": lambda box: geometry.scaling(box[..., 2], box[..., 3]),
    "rotation": lambda box: geometry.rotation(box[..., 0], SIZE),
    "zoom": lambda box: geometry.zoom(box[..., 2], SIZE),
    "area_factors": lambda box: geometry.area_factors(geometry.crop_and_resize(box, SIZE)),
    "compose": lambda box: geometry.compose(
        geometry.horizontal_flip(8), geometry.rotation(box[..., 0], SIZE), geometry.zoom(2, SIZE)
    ),
}


@properties
@given(
    boxes=st.lists(
        st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(9.5, 99), st.floats(9.5, 99)),
        min_size=6,
        max_size=6,
    )
)
@pytest.mark.parametrize("name", BY_BOX)
def test_many_at_once_are_each_by_itself(name, boxes):
    """To the last bit: what is drawn must not depend on what else is in the batch."""
    boxes = np.array(boxes).reshape(2, 3, 4)
    found = BY_BOX[name](boxes)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[place], BY_BOX[name](boxes[place]))


def test_fit_box_grows_about_the_centre_to_the_aspect_ratio():
    np.testing.assert_allclose(geometry.fit_box((0, 0, 10, 10), (10, 20)), (-5, 0, 15, 10))
    np.testing.assert_allclose(geometry.fit_box((0, 0, 10, 10), (20, 10)), (0, -5, 10, 15))
    np.testing.assert_allclose(geometry.fit_box((2, 1, 6, 3), (5, 10)), (2, 1, 6, 3))


def test_pad_box_scales_about_the_centre():
    np.testing.assert_allclose(geometry.pad_box((0, 10, 4, 20), 1.5), (-1, 7.5, 5, 22.5))


@st.composite
def affines(draw, least_shrink=0.05):
    """A crop, a resize, flips and a rotation, as augmentation composes them."""
    size = draw(st.tuples(st.integers(4, 300), st.integers(4, 300)))
    x0, y0 = draw(st.floats(-20, 20)), draw(st.floats(-20, 20))
    width, height = (n / draw(st.floats(least_shrink, 3)) for n in size[::-1])
    steps = [geometry.crop_and_resize((x0, y0, x0 + width, y0 + height), size)]
    if draw(st.booleans()):
        steps.append(geometry.horizontal_flip(size[1]))
    if draw(st.booleans()):
        steps.append(geometry.vertical_flip(size[0]))
    steps.append(geometry.rotation(draw(st.floats(-np.pi, np.pi)), size))
    return geometry.compose(*reversed(steps)), steps


@properties
@given(affines())
def test_compose_acts_from_right_to_left_and_invert_returns(drawn):
    affine, steps = drawn
    points = np.array([[0.0, 0.0], [3.25, 100.5], [-7.0, 2.0]])
    moved = points
    for step in steps:
        moved = geometry.apply(step, moved)
    np.testing.assert_allclose(geometry.apply(affine, points), moved, atol=1e-8)
    np.testing.assert_allclose(geometry.apply(geometry.invert(affine), moved), points, atol=1e-8)


def test_apply_and_invert_broadcast_over_a_batch():
    batch = np.stack([geometry.horizontal_flip(8), geometry.rotation(0.3, SIZE)])
    points = np.random.default_rng(0).uniform(0, 5, (2, 3, 2))
    one_by_one = [geometry.apply(a, p) for a, p in zip(batch, points, strict=True)]
    np.testing.assert_allclose(geometry.apply(batch, points), one_by_one)
    np.testing.assert_allclose(
        geometry.invert(batch) @ batch, np.stack([np.eye(3)] * 2), atol=1e-12
    )


@properties
@given(affines(least_shrink=0.01))
def test_area_average_leaves_a_shrink_below_two_and_never_enlarges(drawn):
    affine, _ = drawn
    fy, fx = geometry.area_factors(affine)
    for factor, one_pixel in ((fx, affine[:2, 0]), (fy, affine[:2, 1])):
        step = factor * np.hypot(*one_pixel)  # of an averaged pixel, in pixels of the input
        assert factor >= 1
        assert step > 0.5 or step == pytest.approx(0.5)
        assert factor == 1 or step <= 1 + 1e-6


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (np.eye(3), (1, 1)),
        (geometry.scaling(4, 4), (1, 1)),
        (geometry.scaling(1 / 1.99, 1 / 2.01), (2, 1)),
        (geometry.resize((1080, 1920), (256, 256)), (4, 7)),
        (geometry.resize((300, 300), (100, 100)), (3, 3)),
        (
            geometry.compose(
                geometry.rotation(np.pi / 2, (90, 90)), geometry.scaling(1 / 5, 1 / 3)
            ),
            (3, 5),
        ),
        (  # sin² + cos² rounds: the columns are a little longer than 1/4 and 1/3
            geometry.compose(
                geometry.rotation(np.radians(8), (90, 90)), geometry.scaling(1 / 3, 1 / 4)
            ),
            (4, 3),
        ),
        (
            geometry.compose(
                geometry.rotation(np.radians(8), (90, 90)), geometry.scaling(1 / 4, 1 / 3)
            ),
            (3, 4),
        ),
    ],
)
def test_area_factors_are_down_and_across(affine, expected):
    assert tuple(geometry.area_factors(affine)) == expected


GRIDS = [  # (input size, heatmap size): stride 2, 3.5, 4, and one that differs by axis
    ((128, 96), (64, 48)),
    ((168, 112), (48, 32)),
    ((128, 256), (32, 64)),
    ((112, 128), (32, 32)),
]
ORIGINAL = (300, 420)


def input_from_original(kind, size):
    crop = geometry.crop_and_resize((31.7, 12.2, 377.3, 281.9), size)
    last = {
        "resize": geometry.compose(),
        "horizontal flip": geometry.horizontal_flip(size[1]),
        "vertical flip": geometry.vertical_flip(size[0]),
        "rotation": geometry.rotation(np.radians(23.0), size),
    }
    if kind == "resize":
        return geometry.resize(ORIGINAL, size)
    return crop if kind == "crop" else geometry.compose(last[kind], crop)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("size", "map_size"), GRIDS)
@pytest.mark.parametrize("kind", ["resize", "crop", "horizontal flip", "vertical flip", "rotation"])
def test_sub_pixel_positions_survive_the_whole_way(kind, size, map_size, sigma):
    """Original → input → Gaussian map → DARK → input → original, at every sub-pixel offset."""
    stride = np.array([size[1] / map_size[1], size[0] / map_size[0]])
    offsets = (np.arange(9) - 4) / 9 * 0.98
    dx, dy = (a.ravel() for a in np.meshgrid(offsets, offsets))
    last = np.array(map_size[::-1]) - 1
    # In the interior, in two corners (up to the very edge) and 0.49 heatmap pixels beyond one.
    cells = np.array([[13.0, 17.0], [0.0, 0.0], [last[0], 9.0], [last[0] - 1, last[1]], [-0.5, 8]])
    in_map = (cells[:, None] + np.stack([dx, dy], -1)).reshape(1, -1, 2)
    forward = input_from_original(kind, size)
    in_original = geometry.apply(geometry.invert(forward), (in_map + 0.5) * stride - 0.5)

    keypoints = geometry.apply(forward, in_original)
    maps = targets.gaussian(np, keypoints.astype(np.float32), size, map_size, sigma)
    config = make_config(
        **{"data.image_size": size, "targets.heatmap_size": map_size, "targets.sigma": sigma}
    )
    found = np.asarray(decode(config, maps).keypoints, np.float64)
    error = found - keypoints  # input pixels
    assert np.abs(error.mean((0, 1))).max() < 1e-3
    assert np.sqrt((error**2).sum(-1)).max() < 0.01
    back = geometry.apply(geometry.invert(forward), found) - in_original  # original pixels
    assert np.sqrt((back**2).sum(-1).mean()) < 0.01

"""Augmentation: what is drawn, that pixels and points move together, and the colours by formula."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import colorsys

import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from heatmap import geometry
from input_pipeline import augment, device, pictures
from tests.helpers import make_config, properties

BOX = np.array([10.0, 20.0, 70.0, 110.0])  # 60 wide, 90 high
SIZE = (64, 96)


def settings(**fields):
    return make_config(**{f"augment.{name}": value for name, value in fields.items()}).augment


def drawn(seed, box=BOX, size=SIZE, **fields):
    return augment.draw(box, settings(**fields), size, np.random.default_rng(seed))


EVERYTHING = {
    "crop_scale": (0.4, 0.9),
    "crop_ratio": (0.8, 1.1),
    "scale": (0.8, 1.2),
    "rotation": 30.0,
    "horizontal_flip": 0.5,
    "vertical_flip": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.3,
    "hue": 0.1,
}


# --- what is drawn ------------------------------------------------------------------------------


def test_draw_is_a_pure_function_of_the_generator():
    first, again, other = (drawn(seed, **EVERYTHING) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.input_from_original, again.input_from_original)
    np.testing.assert_array_equal(first.colour, again.colour)
    assert np.any(first.input_from_original != other.input_from_original)
    assert np.all(first.colour != other.colour)


def test_defaults_change_nothing():
    found = drawn(0)
    expected = geometry.crop_and_resize(BOX, SIZE)
    np.testing.assert_allclose(found.input_from_original, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.colour, augment.NO_COLOUR)


@pytest.mark.parametrize("field", EVERYTHING)
def test_one_setting_does_not_shift_the_numbers_of_another(field):
    """Switching an effect off leaves the draws of all others as they were."""
    neutral = (1.0, 1.0) if isinstance(EVERYTHING[field], tuple) else 0.0
    without = EVERYTHING | {field: neutral}
    colours = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
    a, b = drawn(3, **EVERYTHING), drawn(3, **without)
    kept = [i for i in range(4) if i != colours.get(field)]
    np.testing.assert_array_equal(a.colour[kept], b.colour[kept])
    if field in colours:
        np.testing.assert_array_equal(a.input_from_original, b.input_from_original)
        assert a.colour[colours[field]] != b.colour[colours[field]] == (field != "hue")


def source_of(affine, size=SIZE):
    """The box that an affine without rotation shows: width, height and position."""
    corners = geometry.apply(
        geometry.invert(affine), np.array([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]])
    )
    return np.concatenate([corners.min(0), corners.max(0)])


def test_random_crops_fill_the_ranges_and_stay_inside_the_box():
    boxes = [
        source_of(drawn(s, crop_scale=(0.3, 0.7), crop_ratio=(0.75, 1.3)).input_from_original)
        for s in range(300)
    ]
    x0, y0, x1, y1 = np.transpose(boxes)
    area = (x1 - x0) * (y1 - y0) / (60 * 90)
    ratio = (x1 - x0) / (y1 - y0) / (60 / 90)
    for values, (low, high) in ((area, (0.3, 0.7)), (ratio, (0.75, 1.3))):
        spread = high - low
        assert low - 1e-9 <= values.min() < low + 0.05 * spread
        assert high - 0.05 * spread < values.max() <= high + 1e-9
    assert np.median(area) == pytest.approx(0.5, abs=0.04)  # uniform
    assert np.median(ratio) == pytest.approx(np.sqrt(0.75 * 1.3), abs=0.05)  # even in its logarithm
    assert x0.min() >= BOX[0] - 1e-9
    assert x1.max() <= BOX[2] + 1e-9
    assert y0.min() >= BOX[1] - 1e-9
    assert y1.max() <= BOX[3] + 1e-9
    assert (x0 < BOX[0] + 1).any()
    assert (x1 > BOX[2] - 1).any()


def test_a_crop_that_would_leave_the_box_is_cut_to_it():
    for seed in range(50):
        box = source_of(drawn(seed, crop_ratio=(0.5, 2.0)).input_from_original)
        assert np.all(box[:2] >= BOX[:2] - 1e-9)
        assert np.all(box[2:] <= BOX[2:] + 1e-9)


def turn_and_zoom(affine):
    """Angle in degrees and zoom of a square crop's affine relative to its plain resize."""
    plain = geometry.crop_and_resize((0, 0, 64, 64), (32, 32))
    linear = (affine @ geometry.invert(plain))[:2, :2]
    return np.rad2deg(np.arctan2(linear[1, 0], linear[0, 0])), np.sqrt(np.linalg.det(linear))


def test_rotation_and_zoom_keep_to_their_ranges_and_to_the_centre():
    angles, zooms = [], []
    for seed in range(200):
        affine = drawn(
            seed, box=(0, 0, 64, 64), size=(32, 32), rotation=20.0, scale=(0.5, 1.5)
        ).input_from_original
        angle, zoom = turn_and_zoom(affine)
        angles.append(angle)
        zooms.append(zoom)
        centre = geometry.apply(affine, np.array([[31.5, 31.5]]) + 0.5)
        np.testing.assert_allclose(centre, [[15.5, 15.5]], atol=1e-9)
    assert -20 <= min(angles) < -18
    assert 18 < max(angles) <= 20
    assert 0.5 <= min(zooms) < 0.55
    assert 1.45 < max(zooms) <= 1.5


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probabilities_are_kept(probability):
    fields = {"rotation": 20.0, "rotation_prob": probability, "horizontal_flip": probability}
    count = 300
    affines = [
        drawn(s, box=(0, 0, 64, 64), size=(32, 32), **fields).input_from_original
        for s in range(count)
    ]
    flipped = np.mean([augment.mirrored(a) for a in affines])
    turned = np.mean([abs(a[0, 1]) > 1e-6 for a in affines])
    for share in (flipped, turned):
        assert share == pytest.approx(
            probability, abs=4 * np.sqrt(0.21 / count) if 0 < probability < 1 else 0
        )


@pytest.mark.parametrize(("across", "down"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_one_flip_mirrors_and_two_do_not(across, down):
    affine = drawn(
        5, rotation=170.0, horizontal_flip=float(across), vertical_flip=float(down)
    ).input_from_original
    assert augment.mirrored(affine) == (across != down)


def test_flips_are_about_the_middle_of_the_input():
    plain, flipped = (drawn(0, horizontal_flip=p, vertical_flip=p) for p in (0.0, 1.0))
    points = np.array([[12.0, 30.0], [44.5, 99.0]])
    a, b = (geometry.apply(d.input_from_original, points) for d in (plain, flipped))
    np.testing.assert_allclose(a + b, np.tile([SIZE[1] - 1.0, SIZE[0] - 1.0], (2, 1)))


# --- pixels and points together -----------------------------------------------------------------


def blob(size, point, sigma):
    rows, columns = np.mgrid[: size[0], : size[1]]
    square = (columns - point[0]) ** 2 + (rows - point[1]) ** 2
    return (255 * np.exp(-square / (2 * sigma**2))).astype(np.float32)[..., None]


def centroid(image):
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    mass = image[..., 0].astype(np.float64)
    return np.array([(mass * columns).sum(), (mass * rows).sum()]) / mass.sum()


def warped(image, affine, size):
    return augment.warp(tf.constant(image), *augment.warp_parameters(affine), size).numpy()


@properties
@given(
    seed=st.integers(0, 10**6),
    x=st.floats(-3, 3),
    y=st.floats(-3, 3),
    shrink=st.sampled_from([0.6, 1.0, 1.7, 2.5, 4.3, 7.0]),
)
def test_pixels_and_points_move_together(seed, x, y, shrink):
    """A blob's centre of mass lands where the affine sends its point, whatever the affine."""
    size, side = (80, 96), round(80 * shrink)
    source = (side, side + 20)
    affine = drawn(
        seed, box=geometry.image_box(source), size=size, **EVERYTHING | {"crop_scale": (0.7, 1.0)}
    ).input_from_original
    # Near the middle of what is shown, and small enough that all of the blob is on the input.
    expected = np.array([47.5 + x, 39.5 + y])
    point = geometry.apply(geometry.invert(affine), expected[None])[0]
    zoom = np.linalg.norm(affine[:2, :2], 2)
    image = blob(source, point, max(2.0, 2.5 / zoom))
    assert np.abs(centroid(warped(image, affine, size)) - expected).max() < 0.05


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_area_average_is_half_pixel_exact(factor):
    """Also where the size is no multiple of the factor, and with something left to shrink."""
    size = (factor * 40 + 3, factor * 44 + 1)
    point = np.array([factor * 21.3, factor * 18.6])
    to_size = (36, 40)
    affine = geometry.crop_and_resize(geometry.image_box(size), to_size)
    factors, _ = augment.warp_parameters(affine)
    assert tuple(factors) == (factor, factor)
    found = centroid(warped(blob(size, point, 2.5 * factor), affine, to_size))
    np.testing.assert_allclose(found, geometry.apply(affine, point[None])[0], atol=0.02)


def test_area_average_by_numpy_with_its_last_blocks_repeating_the_border():
    image = np.random.default_rng(0).uniform(0, 255, (7, 11, 3)).astype(np.float32)
    found = augment.area_average(tf.constant(image), tf.constant([3, 4])).numpy()
    padded = np.pad(image, ((0, 2), (0, 1), (0, 0)), mode="edge")
    expected = padded.reshape(3, 3, 3, 4, 3).mean((1, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_fine_checkerboard_becomes_grey_instead_of_aliasing():
    rows, columns = np.mgrid[:1920, :1920]
    board = (((rows // 3 + columns // 3) % 2) * 255).astype(np.uint8)[..., None]
    affine = geometry.resize((1920, 1920), (256, 256))
    found = warped(board, affine, (256, 256))
    assert found.mean() == pytest.approx(127.5, abs=0.5)
    assert found.std() < 20  # bilinear reads alone give over 90


def test_factors_follow_each_axis_of_the_original():
    """A wide picture that is turned on its side and squeezed across only."""
    affine = geometry.compose(
        geometry.rotation(np.pi / 2, (64, 64)), geometry.resize((64, 256), (64, 64))
    )
    factors, _ = augment.warp_parameters(affine)
    assert tuple(factors) == (1, 4)  # down, across


@pytest.mark.parametrize(
    ("size", "to_size"), [((20, 30), (20, 30)), ((20, 30), (33, 50)), ((20, 30), (11, 17))]
)
def test_plain_resize_is_tensorflows_half_pixel_bilinear(size, to_size):
    image = np.random.default_rng(1).uniform(0, 255, (*size, 3)).astype(np.float32)
    found = warped(image, geometry.resize(size, to_size), to_size)
    expected = tf.image.resize(image, to_size, method="bilinear", antialias=False)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_borders_are_repeated_not_darkened():
    flat = np.full((20, 30, 3), 200, np.uint8)
    for affine in (
        geometry.resize((20, 30), (64, 96)),
        geometry.resize((20, 30), (7, 11)),
        geometry.crop_and_resize((-9.0, -5.0, 50.0, 31.0), (16, 16)),
        geometry.compose(geometry.rotation(0.7, (16, 16)), geometry.resize((20, 30), (16, 16))),
    ):
        np.testing.assert_allclose(warped(flat, affine, (16, 16)), 200, atol=1e-3)


# --- colours ------------------------------------------------------------------------------------


def picture(channels=3):
    return np.random.default_rng(2).uniform(0, 255, (6, 5, channels)).astype(np.float32)


def grey_of(image):
    return image @ np.array([0.299, 0.587, 0.114]) if image.shape[-1] == 3 else image[..., 0]


def hue_turned(image, turns):
    """Pixel by pixel with the standard library."""
    result = np.empty_like(image)
    for index in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[index] / 255))
        result[index] = 255 * np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    return result


FORMULAS = {  # torchvision's definitions, with factors that clip at either end
    "brightness": (1.6, lambda im, f: np.clip(im * f, 0, 255)),
    "contrast": (1.5, lambda im, f: np.clip(f * im + (1 - f) * grey_of(im).mean(), 0, 255)),
    "saturation": (1.7, lambda im, f: np.clip(f * im + (1 - f) * grey_of(im)[..., None], 0, 255)),
    "hue": (0.3, hue_turned),
}


def on_host(image, colour, config):
    return augment.jitter(tf.constant(image), colour, config).numpy()


def on_device(image, colour, config):
    """As one of two pictures, so that one's numbers do not reach the other."""
    images, colours = np.stack([255 - image, image]), np.stack([augment.NO_COLOUR, colour])
    return np.asarray(device.jitter(images, jnp.asarray(colours), config))[1]


everywhere = pytest.mark.parametrize("jitter", [on_host, on_device])


@everywhere
@pytest.mark.parametrize("effect", FORMULAS)
def test_each_effect_follows_its_formula(effect, jitter):
    image = picture()
    for factor in (FORMULAS[effect][0], 0.4 if effect != "hue" else -0.2):
        colour = augment.NO_COLOUR.copy()
        colour[list(FORMULAS).index(effect)] = factor
        found = jitter(image, colour, settings(**{effect: 0.5}))
        np.testing.assert_allclose(found, FORMULAS[effect][1](image, factor), atol=0.01)


@everywhere
def test_effects_follow_one_another_in_order(jitter):
    image = picture()
    colour = np.array([1.3, 0.8, 1.4, 0.1], np.float32)
    config = settings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    expected = image
    for (_, formula), factor in zip(FORMULAS.values(), colour, strict=True):
        expected = formula(expected, factor)
    np.testing.assert_allclose(jitter(image, colour, config), expected, atol=0.05)


@everywhere
def test_grey_pixels_have_no_hue(jitter):
    image = np.repeat(picture(1), 3, axis=-1)
    colour = np.array([1, 1, 1, 0.3], np.float32)
    np.testing.assert_allclose(jitter(image, colour, settings(hue=0.5)), image, atol=1e-4)


@everywhere
def test_grey_pictures_have_brightness_and_contrast_only(jitter):
    image = picture(1)
    config = settings(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)
    colour = np.array([0.9, 0.8, 1.4, 0.1], np.float32)
    expected = FORMULAS["contrast"][1](FORMULAS["brightness"][1](image, 0.9), 0.8)
    np.testing.assert_allclose(jitter(image, colour, config), expected, atol=0.01)


@everywhere
def test_settings_of_zero_leave_the_pixels(jitter):
    colour = np.array([1.3, 0.8, 1.4, 0.1], np.float32)
    np.testing.assert_array_equal(jitter(picture(), colour, settings()), picture())


# --- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_is_pillows_exif_transpose(orientation):
    pixels = np.random.default_rng(3).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    found = tf.function(pictures.upright)(tf.constant(pixels), tf.constant(orientation))
    np.testing.assert_array_equal(found, expected)

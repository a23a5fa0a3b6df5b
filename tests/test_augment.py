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
from scipy import stats

from heatmap import geometry
from input_pipeline import augment, device, pictures
from tests.helpers import make_config, properties

BOX = np.array([10.0, 20.0, 70.0, 110.0])  # 60 wide, 90 high
SIZE = (64, 96)


def settings(**fields):
    return make_config(**{f"augment.{name}": value for name, value in fields.items()}).augment


def drawn(seed, count=1, box=BOX, size=SIZE, **fields):
    """What happens to so many examples of the same box."""
    numbers = augment.uniforms(seed, 0, 0, count)
    return augment.draw(np.tile(box, (count, 1)), numbers, settings(**fields), size)


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


# --- random numbers -----------------------------------------------------------------------------


@properties
@given(
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
    first=st.integers(0, 200),
    count=st.integers(0, 100),
)
def test_numbers_of_a_place_do_not_depend_on_where_one_begins(seed, epoch, first, count):
    whole = augment.uniforms(seed, epoch, 0, 300)
    found = augment.uniforms(seed, epoch, first, first + count)
    np.testing.assert_array_equal(found, whole[first : first + count])


def test_numbers_far_into_an_epoch_need_none_of_those_before():
    """A place beyond all memory, and beyond 32 bits."""
    first = 2**33
    found = augment.uniforms(0, 0, first, first + 50)
    np.testing.assert_array_equal(found[20:], augment.uniforms(0, 0, first + 20, first + 50))
    assert not np.isin(found, augment.uniforms(0, 0, 0, 50)).any()


def test_every_seed_and_epoch_has_its_own_numbers():
    """No number comes twice, also not shifted, in another column or with the two exchanged."""
    tables = [augment.uniforms(s, e, 0, 500) for s in range(4) for e in range(4)]
    assert len(np.unique(tables)) == 16 * 500 * augment.UNIFORMS


def correlations(a, b):
    """Of every column with every other, [UNIFORMS, UNIFORMS]."""
    together = np.corrcoef(a, b, rowvar=False)
    return together[: augment.UNIFORMS, augment.UNIFORMS :]


def test_numbers_are_uniform_and_independent():
    """Of an epoch, of one place in many epochs, and of one place for many seeds."""
    count = 20_000
    epoch = augment.uniforms(5, 3, 0, count)
    epochs = np.concatenate([augment.uniforms(5, e, 17, 18) for e in range(count)])
    seeds = np.concatenate([augment.uniforms(s, 3, 17, 18) for s in range(count)])
    for table in (epoch, epochs, seeds):
        assert min(stats.kstest(column, "uniform").pvalue for column in table.T) > 1e-3
        between = [correlations(table[lag:], table[: count - lag]) for lag in (1, 2, 3, 7)]
        within = correlations(table, table)
        assert np.abs(within - np.eye(augment.UNIFORMS)).max() < 5 / np.sqrt(count)
        assert np.abs(between).max() < 5 / np.sqrt(count)
        # Neighbours fill the square evenly too: no pattern that correlation cannot see.
        for column in table.T:
            pairs, _, _ = np.histogram2d(column[1:], column[:-1], bins=8, range=((0, 1), (0, 1)))
            assert stats.chisquare(pairs.ravel()).pvalue > 1e-5
    for other in (augment.uniforms(5, 4, 0, count), augment.uniforms(6, 3, 0, count)):
        assert np.abs(correlations(epoch, other)).max() < 5 / np.sqrt(count)


# --- what is drawn ------------------------------------------------------------------------------


def one_by_one(box, numbers, config, size, points):
    """Moves points [n, 2] as configs/common.py says, in plain arithmetic, and draws the colours."""
    x0, y0, x1, y1 = box
    area, ratio, across, down, zoom, angle, turns, flips_x, flips_y, *colours = numbers[:13]

    def between(low, high, share):
        return low + share * (high - low)

    area = between(*config.crop_scale, area)
    ratio = np.exp(between(*np.log(config.crop_ratio), ratio))
    width = min(x1 - x0, (x1 - x0) * np.sqrt(area * ratio))
    height = min(y1 - y0, (y1 - y0) * np.sqrt(area / ratio))
    left, top = between(x0, x1 - width, across), between(y0, y1 - height, down)
    centre = np.array([size[1] - 1, size[0] - 1]) / 2
    moved = []
    for x, y in points:
        shown = np.array([(x - left) / width * size[1], (y - top) / height * size[0]]) - 0.5
        x, y = (shown - centre) * between(*config.scale, zoom)
        if turns < config.rotation_prob:
            turned = np.radians(between(-config.rotation, config.rotation, angle))
            cos, sin = np.cos(turned), np.sin(turned)
            x, y = cos * x - sin * y, sin * x + cos * y
        x = -x if flips_x < config.horizontal_flip else x
        y = -y if flips_y < config.vertical_flip else y
        moved.append(centre + np.array([x, y]))
    spreads = (config.brightness, config.contrast, config.saturation, config.hue)
    factors = [between(-s, s, share) for s, share in zip(spreads, colours, strict=True)]
    return np.array(moved), augment.NO_COLOUR + factors


unit = st.floats(0, 1, exclude_max=True)


@st.composite
def ranges(draw, low, high):
    return tuple(sorted(draw(st.tuples(st.floats(low, high), st.floats(low, high)))))


@properties
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    fields=st.fixed_dictionaries(
        {
            "crop_scale": ranges(0.05, 1.0),
            "crop_ratio": ranges(0.3, 3.0),
            "scale": ranges(0.3, 3.0),
            "rotation": st.floats(0, 180),
            **dict.fromkeys(("rotation_prob", "horizontal_flip", "vertical_flip"), unit),
            **dict.fromkeys(("brightness", "contrast", "saturation"), unit),
            "hue": st.floats(0, 0.5),
        }
    ),
)
def test_examples_drawn_together_are_those_drawn_one_by_one(seed, size, fields):
    rng = np.random.default_rng(seed)
    corner, extent = rng.uniform(-50, 50, (7, 2)), rng.uniform(2, 400, (7, 2))
    boxes = np.concatenate([corner, corner + extent], axis=1)
    points, numbers = rng.uniform(-100, 500, (7, 3, 2)), rng.random((7, augment.UNIFORMS))
    config = settings(**fields)
    found = augment.draw(boxes, numbers, config, size)
    assert found.colour.dtype == np.float32
    for i, affine in enumerate(found.input_from_original):
        moved, colour = one_by_one(boxes[i], numbers[i], config, size, points[i])
        np.testing.assert_allclose(geometry.apply(affine, points[i]), moved, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(found.colour[i], colour, rtol=1e-6, atol=1e-7)


def test_draws_differ_between_examples_and_seeds():
    first, other = (drawn(seed, 2, **EVERYTHING) for seed in (1, 2))
    for a, b in ((0, 1), (1, 0)):
        for others in (first, other):
            assert np.any(first.input_from_original[a] != others.input_from_original[b])
            assert np.all(first.colour[a] != others.colour[b])


def test_defaults_change_nothing():
    found = drawn(0)
    expected = geometry.crop_and_resize(BOX, SIZE)
    np.testing.assert_allclose(found.input_from_original[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.colour[0], augment.NO_COLOUR)


@pytest.mark.parametrize("field", EVERYTHING)
def test_one_setting_does_not_shift_the_numbers_of_another(field):
    """Switching an effect off leaves the draws of all others as they were."""
    neutral = (1.0, 1.0) if isinstance(EVERYTHING[field], tuple) else 0.0
    without = EVERYTHING | {field: neutral}
    colours = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}
    a, b = drawn(3, **EVERYTHING), drawn(3, **without)
    kept = [i for i in range(4) if i != colours.get(field)]
    np.testing.assert_array_equal(a.colour[0, kept], b.colour[0, kept])
    if field in colours:
        np.testing.assert_array_equal(a.input_from_original, b.input_from_original)
        assert a.colour[0, colours[field]] != b.colour[0, colours[field]] == (field != "hue")


def sources_of(affines, size=SIZE):
    """The boxes [N, 4] that affines without rotation show."""
    corners = geometry.apply(
        geometry.invert(affines), np.array([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]])
    )
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def assert_uniform(values, low, high):
    """By the test of Kolmogorov and Smirnov."""
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-3


def test_random_crops_fill_the_ranges_and_stay_inside_the_box():
    affines = drawn(0, 4000, crop_scale=(0.3, 0.7), crop_ratio=(0.75, 1.3)).input_from_original
    x0, y0, x1, y1 = sources_of(affines).T
    assert_uniform((x1 - x0) * (y1 - y0) / (60 * 90), 0.3, 0.7)
    assert_uniform(np.log((x1 - x0) / (y1 - y0) / (60 / 90)), np.log(0.75), np.log(1.3))
    assert_uniform((x0 - BOX[0]) / (60 - (x1 - x0)), 0, 1)
    assert_uniform((y0 - BOX[1]) / (90 - (y1 - y0)), 0, 1)


def test_a_crop_that_would_leave_the_box_is_cut_to_it():
    boxes = sources_of(drawn(0, 300, crop_ratio=(0.5, 2.0)).input_from_original)
    assert np.all(boxes[:, :2] >= BOX[:2] - 1e-9)
    assert np.all(boxes[:, 2:] <= BOX[2:] + 1e-9)
    # The other side is what area and ratio make it: the square root of their quotient.
    shares = (boxes[:, 2:] - boxes[:, :2]) / (60, 90)
    np.testing.assert_allclose(shares.max(1), 1)
    assert 0.5**0.5 - 1e-9 <= shares.min() < 0.75


SQUARE = {"box": np.array([0.0, 0, 64, 64]), "size": (32, 32)}


def test_rotation_and_zoom_keep_to_their_ranges_and_to_the_centre():
    affines = drawn(0, 4000, rotation=20.0, scale=(0.5, 1.5), **SQUARE).input_from_original
    linear = affines[:, :2, :2] * 2  # relative to the plain resize
    assert_uniform(np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])), -20, 20)
    assert_uniform(np.sqrt(np.linalg.det(linear)), 0.5, 1.5)
    centres = geometry.apply(affines, np.array([[32.0, 32.0]]))
    np.testing.assert_allclose(centres, np.full((4000, 1, 2), 15.5), atol=1e-9)


def test_colours_keep_to_their_ranges():
    fields = {"brightness": 0.3, "contrast": 0.2, "saturation": 0.5, "hue": 0.1}
    colours = drawn(0, 4000, **fields).colour
    for values, middle, spread in zip(colours.T, (1, 1, 1, 0), fields.values(), strict=True):
        assert_uniform(values, middle - spread, middle + spread)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probabilities_are_kept(probability):
    """And one event says nothing of another."""
    chances = ("rotation_prob", "horizontal_flip", "vertical_flip")
    count, fields = 4000, {"rotation": 20.0, **dict.fromkeys(chances, probability)}
    linear = drawn(1, count, **fields, **SQUARE).input_from_original[:, :2, :2]
    # Turns are of less than a quarter, so that flips show in the signs of the diagonal.
    events = np.stack([abs(linear[:, 0, 1]) > 1e-6, linear[:, 0, 0] < 0, linear[:, 1, 1] < 0])
    for i, event in enumerate(events):
        for joint, chance in ((event, probability), (event & events[i - 1], probability**2)):
            assert stats.binomtest(int(joint.sum()), count, chance).pvalue > 1e-3


@pytest.mark.parametrize(("across", "down"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_one_flip_mirrors_and_two_do_not(across, down):
    affines = drawn(
        5, 20, rotation=170.0, horizontal_flip=float(across), vertical_flip=float(down)
    ).input_from_original
    np.testing.assert_array_equal(augment.mirrored(affines), [across != down] * 20)
    assert augment.mirrored(affines[0]) == (across != down)


def test_flips_are_about_the_middle_of_the_input():
    plain, flipped = (drawn(0, horizontal_flip=p, vertical_flip=p) for p in (0.0, 1.0))
    points = np.array([[12.0, 30.0], [44.5, 99.0]])
    a, b = (geometry.apply(d.input_from_original[0], points) for d in (plain, flipped))
    np.testing.assert_allclose(a + b, np.tile([SIZE[1] - 1.0, SIZE[0] - 1.0], (2, 1)))


def test_warp_parameters_of_many_are_those_of_each():
    """From a pixel of the input to its place in the averaged picture."""
    box = geometry.image_box((700, 900))
    affines = drawn(2, 50, box=box, **EVERYTHING).input_from_original
    factors, transforms = augment.warp_parameters(affines)
    assert (factors.dtype, transforms.dtype) == (np.int32, np.float32)
    assert factors.min(0).min() > 1
    pixel = np.array([[40.0, 20.0]])
    for affine, (down, across), numbers in zip(affines, factors, transforms, strict=True):
        (x, y), *_ = geometry.apply(np.linalg.inv(affine), pixel)
        transform = np.append(numbers, 1).reshape(3, 3)
        expected = [(x + 0.5) / across - 0.5, (y + 0.5) / down - 0.5]
        np.testing.assert_allclose(geometry.apply(transform, pixel)[0], expected, atol=1e-3)
        alone = augment.warp_parameters(affine)
        np.testing.assert_array_equal(alone[0], (down, across))
        np.testing.assert_array_equal(alone[1], numbers)


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
    ).input_from_original[0]
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

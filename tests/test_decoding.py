"""Every entry of DECODERS on maps whose answer is known, and on maps that have none."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import decoding, losses, targets
from heatmap.errors import UserError
from tests.helpers import decode, make_config, properties, quick_jit

SIZE = 64
READS = [
    (name, kind)
    for name, decoder in decoding.DECODERS.items()
    for kind in decoder.reads
    if kind != "coordinates"
]
LOSS_OF_KIND = {loss.trains: name for name, loss in losses.LOSSES.items()}
# Largest error on a noiseless Gaussian four σ from the border, in heatmap pixels. A new decoder
# must at least beat the largest pixel.
BOUNDS = {
    "argmax": np.sqrt(0.5) + 1e-5,
    "soft_argmax": 1e-3,
    "local_soft_argmax": 0.013,  # with a window of 3σ
    "dark": 1e-4,
}


def gaussian_maps(points, sigma, kind, size=(SIZE, SIZE)):
    """Maps [1, h, w, K] of points [K, 2] in heatmap pixels: Gaussians, or their logarithms."""
    points = np.asarray(points, np.float64)
    if kind == "peak":
        return targets.gaussian(np, points[None], size, size, sigma).astype(np.float32)
    rows, columns = np.mgrid[: size[0], : size[1]]
    squared = (columns[..., None] - points[:, 0]) ** 2 + (rows[..., None] - points[:, 1]) ** 2
    return (-squared / (2 * sigma**2) + 1.7)[None].astype(np.float32)


@functools.partial(quick_jit, static_argnames=("name", "kind", "config"))
def located(maps, name, kind, config):
    """Where one decoder finds the points, [B, K, 2] in heatmap pixels; compiled, as in a run."""
    return decoding.DECODERS[name].locate(maps, kind, config)


covariance = quick_jit(decoding.covariance, static_argnames=("kind", "sigma"))


@functools.cache
def decoder_config(**decoder):
    return make_config(**{f"decoder.{k}": v for k, v in decoder.items()}).decoder


def locate(name, maps, kind, **decoder):
    """Runs one decoder on one example; returns [K, 2] in heatmap pixels."""
    return np.asarray(located(maps, name, kind, decoder_config(**decoder)))[0]


def errors(name, points, sigma, kind, **decoder):
    found = locate(name, gaussian_maps(points, sigma, kind), kind, **decoder)
    return np.linalg.norm(found - points, axis=-1)


def random_points(low, high, count=60, seed=0):
    return np.random.default_rng(seed).uniform(low, high, (count, 2))


# --- accuracy ---


@pytest.mark.parametrize(("name", "kind"), READS)
@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0, 3.0])
def test_error_on_a_noiseless_interior_gaussian_is_within_the_bound(name, kind, sigma):
    points = random_points(4 * sigma, SIZE - 1 - 4 * sigma)
    worst = errors(name, points, sigma, kind, radius=int(np.ceil(3 * sigma))).max()
    assert worst <= BOUNDS.get(name, BOUNDS["argmax"])


@pytest.mark.parametrize("kind", ["peak", "logits"])
@properties
@given(
    points=st.lists(st.tuples(st.floats(14, 49), st.floats(14, 49)), min_size=4, max_size=4),
    sigma=st.floats(0.8, 3.2),
)
def test_dark_is_exact_for_any_sigma_and_position(kind, points, sigma):
    assert errors("dark", np.array(points), sigma, kind).max() < 1e-3


@pytest.mark.parametrize("kind", ["peak", "logits"])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_dark_is_exact_at_the_border_and_a_little_beyond(kind, sigma):
    along = np.linspace(-0.95, 63.95, 40)
    edge = np.concatenate(
        [
            np.stack([np.full_like(along, at), along], -1)[:, ::order]
            for at in (-0.95, -0.5, 0.0, 0.3, 62.7, 63.0, 63.5, 63.95)
            for order in (1, -1)
        ]
    )
    assert errors("dark", edge, sigma, kind).max() < 1e-3


@pytest.mark.parametrize("kind", ["peak", "logits"])
def test_dark_solves_an_oblique_anisotropic_peak(kind):
    """The mixed derivative counts: a slanted quadratic is solved exactly only with it."""
    rows, columns = np.mgrid[:20, :24]
    dx, dy = columns - 10.3, rows - 8.8
    log = -(0.10 * dx**2 + 0.12 * dx * dy + 0.08 * dy**2)
    maps = (np.exp(log) if kind == "peak" else log)[None, ..., None].astype(np.float32)
    np.testing.assert_allclose(locate("dark", maps, kind)[0], (10.3, 8.8), atol=1e-4)


@pytest.mark.parametrize(
    "fall",
    [
        lambda rows, columns: -3.0 * np.sqrt(rows + columns),  # a saddle one pixel inside
        lambda rows, columns: np.exp(-rows) + np.exp(-columns),  # a bowl
    ],
)
def test_dark_keeps_the_largest_pixel_where_the_log_map_has_no_peak(fall):
    """A spike in the corner that decays ever slower is nowhere concave."""
    maps = fall(*np.mgrid[:20, :24])[None, ..., None].astype(np.float32)
    np.testing.assert_array_equal(locate("dark", maps, "logits")[0], (0, 0))


def test_dark_steps_at_most_two_pixels():
    maps = np.random.default_rng(0).normal(size=(1, 16, 16, 300)).astype(np.float32)
    step = locate("dark", maps, "logits") - locate("argmax", maps, "logits")
    assert np.abs(step).max() <= 3  # two, and one by which the stencil moves from the border


@pytest.mark.parametrize("kind", ["peak", "logits"])
def test_argmax_costs_the_documented_mean_error(kind):
    points = random_points(10, 53, count=400)
    assert errors("argmax", points, 2.0, kind).mean() == pytest.approx(0.38, abs=0.03)


@pytest.mark.parametrize(("width_in_sigma", "bound"), [(3, 0.012), (2, 0.12), (1, 0.44)])
def test_window_of_local_soft_argmax_costs_what_its_docstring_says(width_in_sigma, bound):
    points = random_points(20, 43, count=100)
    worst = errors("local_soft_argmax", points, 3.0, "peak", radius=3 * width_in_sigma).max()
    assert 0.5 * bound < worst <= bound


@pytest.mark.parametrize("name", ["soft_argmax", "local_soft_argmax"])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_a_centre_of_mass_is_pulled_inside_at_the_border_by_at_most_a_half_gaussian(name, sigma):
    points = random_points(-0.5, 0.5)
    found = locate(name, gaussian_maps(points, sigma, "logits"), "logits", radius=12)
    pull = (found - points) / sigma
    assert pull.min() > 0
    assert 0.75 < pull.max() < 0.85  # as documented: 0.8, on pixels a little more


@pytest.mark.parametrize(("grid", "reached"), [("centres", 1.5), ("edges", -0.5)])
def test_the_edge_of_the_picture_can_be_reached_on_the_grid_of_edges_only(grid, reached):
    """64 pixels of a map stand for 256 of the picture: x = 0 and x = 255 lie beyond the centres."""
    maps = np.full((2, 64, 64, 1), -50.0, np.float32)
    maps[0, 0, 0], maps[1, -1, -1] = 50.0, 50.0
    config = make_config(
        **{
            "data.image_size": (256, 256),
            "loss.name": "cross_entropy",
            "decoder.name": "soft_argmax",
            "decoder.grid": grid,
        }
    )
    found = np.asarray(decode(config, maps).keypoints)[:, 0]
    np.testing.assert_allclose(found, [[reached] * 2, [255 - reached] * 2], atol=1e-4)


@pytest.mark.parametrize("x", [12.0, 20.3, 31.5, 44.0, 51.0])
def test_the_grid_of_edges_costs_what_its_docstring_says(x):
    point = np.array([[x, 31.5]], np.float32)
    found = locate("soft_argmax", gaussian_maps(point, 2.0, "logits"), "logits", grid="edges")
    np.testing.assert_allclose(found[0] - point[0], [(x - 31.5) / 63, 0], atol=1e-3)


# --- the fact that decides which decoder reads which loss ---


def test_plain_soft_argmax_cannot_read_maps_of_squared_error():
    points = random_points(2, 61)
    maps = gaussian_maps(random_points(20, 43, count=1), 2.0, "peak")
    total = np.exp(maps.astype(np.float64)).sum()
    assert total == pytest.approx(4129, abs=2)  # the Gaussian adds 33 to 4096
    probability = np.exp(maps.astype(np.float64)) / total
    assert -(probability * np.log(probability)).sum() == pytest.approx(8.3154, abs=2e-4)

    assert errors("soft_argmax", points, 2.0, "peak", beta=1.0).mean() > 10
    found = locate("soft_argmax", gaussian_maps(points, 2.0, "peak"), "peak", beta=1.0)
    assert np.abs(found - 31.5).max() < 1  # all of them near the centre of the map
    assert errors("soft_argmax", points, 2.0, "logits", beta=1.0).mean() < 1  # border included
    assert errors("dark", points, 2.0, "peak").max() < 1e-3


@pytest.mark.parametrize(("sigma", "bound"), [(1.0, 0.40), (2.0, 0.07), (3.0, 0.003)])
def test_a_temperature_lets_soft_argmax_read_wide_peaks_only(sigma, bound):
    worst = errors("soft_argmax", random_points(14, 49), sigma, "peak", beta=20.0).max()
    assert 0.3 * bound < worst < bound


@pytest.mark.parametrize("loss", losses.LOSSES)
@pytest.mark.parametrize("name", decoding.DECODERS)
@pytest.mark.parametrize("force", [False, True])
def test_check_refuses_a_decoder_that_cannot_read_the_loss(loss, name, force):
    config = make_config(
        **{"loss.name": loss, "decoder.name": name, "decoder.force": force, "decoder.beta": 1.0}
    )
    kind = losses.LOSSES[loss].trains
    fits = kind in decoding.DECODERS[name].reads or kind == "coordinates"
    if fits or (force and name != "coordinates"):
        decoding.check(config)
        return
    with pytest.raises(UserError) as caught:
        decoding.check(config)
    message = str(caught.value)
    assert f"decoder.name='{name}'" in message
    assert f"loss.name='{loss}'" in message
    assert "dark" in message
    assert "decoder.force" in message or name == "coordinates"


@pytest.mark.parametrize(("beta", "refused"), [(1.0, True), (9.9, True), (10.0, False)])
def test_soft_argmax_reads_squared_error_from_a_temperature_on(beta, refused):
    config = make_config(
        **{"loss.name": "mse", "decoder.name": "soft_argmax", "decoder.beta": beta}
    )
    if not refused:
        decoding.check(config)
        return
    with pytest.raises(UserError, match=r"set decoder\.beta to 10 or more"):
        decoding.check(config)


def test_an_unknown_decoder_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'local_soft_argmax'"):
        decoding.check(make_config(**{"decoder.name": "local_softargmax"}))


# --- behaviour on any map ---


def odd_maps():
    rng = np.random.default_rng(0)
    shape = (2, 12, 17, 3)
    spike = np.zeros(shape, np.float32)
    spike[:, 0, 16] = 1.0
    return {
        "zero": np.zeros(shape),
        "constant": np.full(shape, 0.3),
        "negative": -rng.uniform(0.1, 1.0, shape),
        "constant negative": np.full(shape, -4.0),
        "random": rng.normal(0, 1, shape),
        "huge": rng.normal(0, 1e4, shape),
        "tiny": rng.uniform(0, 1e-20, shape),
        "a spike in a corner": spike,
    }


@pytest.mark.parametrize(("name", "kind"), READS)
@pytest.mark.parametrize("case", odd_maps())
def test_any_map_gives_finite_points_on_it_and_bounded_scores(name, kind, case):
    config = make_config(
        **{
            "loss.name": LOSS_OF_KIND[kind],
            "decoder.name": name,
            "data.image_size": (24, 34),
            "targets.heatmap_size": (12, 17),
        }
    )
    decoded = decode(config, odd_maps()[case].astype(np.float32))
    keypoints, score, entropy, height, covariance = (np.asarray(part) for part in decoded)
    assert keypoints.shape == (2, 3, 2)
    assert covariance.shape == (2, 3, 2, 2)
    assert np.isfinite(covariance).all()
    assert (np.linalg.eigvalsh(covariance) >= -1e-3).all()
    assert score.shape == entropy.shape == (2, 3)
    assert keypoints.dtype == score.dtype == entropy.dtype == np.float32
    assert np.isfinite(keypoints).all()
    # DARK may step beyond the border by 2 heatmap pixels, less the one that its stencil moved.
    assert (keypoints >= -0.5 - 2 * 1.5).all()
    assert (keypoints <= np.array([33.5, 23.5]) + 2 * 1.5).all()
    assert (score >= 0).all()
    assert (score <= 1 + 1e-6).all()
    assert (entropy >= -1e-6).all()
    np.testing.assert_array_equal(height, odd_maps()[case].astype(np.float32).max((1, 2)))
    assert (entropy <= np.log(12 * 17) + 1e-5).all()


@pytest.mark.parametrize(("name", "kind"), [r for r in READS if r[0] != "soft_argmax"])
def test_a_map_without_a_positive_value_is_still_read_at_its_largest(name, kind):
    maps = gaussian_maps([(20.0, 30.0)], 2.0, "peak") - 1.5
    np.testing.assert_allclose(locate(name, maps, kind)[0], (20, 30), atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), READS)
@properties
@given(
    seed=st.integers(0, 999),
    start=st.tuples(st.integers(4, 12), st.integers(4, 12)),
    end=st.tuples(st.integers(4, 12), st.integers(4, 12)),
)
def test_shifting_the_picture_shifts_the_answer(name, kind, seed, start, end):
    patch = np.random.default_rng(seed).uniform(0.1, 1.0, (7, 7, 2)).astype(np.float32)
    patch[3, 3] += 0.5
    found = []
    for column, row in (start, end):
        maps = np.full((1, 24, 24, 2), 0.0 if kind == "peak" else -1e3, np.float32)
        maps[0, row : row + 7, column : column + 7] = patch
        found.append(locate(name, maps, kind))
    np.testing.assert_allclose(found[1] - found[0], [np.subtract(end, start)] * 2, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), READS)
def test_every_map_is_read_by_itself(name, kind):
    """Batch and point axes do not mix."""
    maps = np.random.default_rng(0).normal(0, 1, (3, 9, 11, 4)).astype(np.float32)
    together = np.asarray(located(maps, name, kind, decoder_config()))
    for b, k in np.ndindex(3, 4):
        alone = locate(name, maps[b : b + 1, :, :, k : k + 1], kind)[0]
        np.testing.assert_allclose(together[b, k], alone, atol=1e-5)


# --- scores ---


def test_score_of_a_peak_is_its_height_within_zero_and_one():
    maps = np.stack([np.eye(8) * h for h in (-0.2, 0.4, 1.3)], -1)[None].astype(np.float32)
    maps[..., 0] -= 0.1
    score = decoding.score(jnp.asarray(maps), "peak", make_config().decoder)
    np.testing.assert_allclose(score[0], [0.0, 0.4, 1.0], atol=1e-6)


@pytest.mark.parametrize("radius", [1, 3, 20])
def test_score_of_logits_is_the_probability_within_the_radius(radius):
    maps = np.random.default_rng(0).normal(0, 2, (2, 10, 13, 3)).astype(np.float32)
    config = make_config(**{"decoder.radius": radius}).decoder
    score = np.asarray(decoding.score(jnp.asarray(maps), "logits", config))
    for b, k in np.ndindex(2, 3):
        p = np.exp(maps[b, ..., k].astype(np.float64))
        p /= p.sum()
        i, j = np.unravel_index(p.argmax(), p.shape)
        window = p[max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1]
        assert score[b, k] == pytest.approx(window.sum(), rel=1e-5)


@pytest.mark.parametrize("kind", ["peak", "logits"])
def test_entropy_is_that_of_the_map_as_a_distribution(kind):
    maps = np.random.default_rng(0).normal(0, 1, (2, 10, 13, 3)).astype(np.float32)
    found = np.asarray(decoding.entropy(jnp.asarray(maps), kind))
    for b, k in np.ndindex(2, 3):
        m = maps[b, ..., k].astype(np.float64)
        p = np.exp(m) if kind == "logits" else np.maximum(m, 0)
        p = p[p > 0] / p.sum()
        assert found[b, k] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)


def test_entropy_runs_from_certain_to_uniform():
    one_pixel = np.zeros((1, 10, 13, 1), np.float32)
    one_pixel[0, 4, 5] = 0.7
    nowhere = -np.ones((1, 10, 13, 1), np.float32)
    assert decoding.entropy(one_pixel, "peak") == pytest.approx(0.0, abs=1e-6)
    assert decoding.entropy(1e3 * one_pixel, "logits") == pytest.approx(0.0, abs=1e-6)
    for empty in (nowhere, 0 * nowhere):  # says nothing about where, not "surely there"
        assert decoding.entropy(empty, "peak") == pytest.approx(np.log(130), abs=1e-5)
        assert decoding.entropy(empty, "logits") == pytest.approx(np.log(130), abs=1e-5)


# --- from heatmap pixels to input pixels ---


@pytest.mark.parametrize(
    ("image_size", "map_size"),
    [((64, 64), (16, 16)), ((112, 70), (32, 20)), ((48, 96), (24, 16)), ((16, 16), (16, 16))],
)
@pytest.mark.parametrize(("name", "kind"), READS)
def test_decode_answers_in_input_pixels_by_the_half_pixel_rule(name, kind, image_size, map_size):
    config = make_config(
        **{
            "data.image_size": image_size,
            "targets.heatmap_size": map_size,
            "loss.name": LOSS_OF_KIND[kind],
            "decoder.name": name,
        }
    )
    column, row = 9, 7
    maps = gaussian_maps([(column, row)], 0.8, kind, map_size)
    decoded = decode(config, maps)
    expected = [
        (column + 0.5) * image_size[1] / map_size[1] - 0.5,
        (row + 0.5) * image_size[0] / map_size[0] - 0.5,
    ]
    np.testing.assert_allclose(decoded.keypoints[0, 0], expected, atol=2e-3)


@pytest.mark.parametrize("decoder", decoding.DECODERS)
def test_coordinates_need_no_decoder_and_have_no_score(decoder):
    config = make_config(
        **{
            "data.image_size": (30, 50),
            "loss.name": "coordinate_mse",
            "decoder.name": decoder,
        }
    )
    decoding.check(config)
    unit = jnp.array([[[0.0, 0.0], [1.0, 1.0], [0.51, 0.05]]])
    decoded = decode(config, unit)
    np.testing.assert_allclose(
        decoded.keypoints[0], [[-0.5, -0.5], [49.5, 29.5], [25.0, 1.0]], atol=1e-5
    )
    assert np.isnan(decoded.score).all()
    assert np.isnan(decoded.entropy).all()
    assert decoded.score.shape == decoded.entropy.shape == (1, 3)


def test_a_misspelt_decoder_is_refused_even_where_none_is_used():
    config = make_config(**{"loss.name": "coordinate_mse", "decoder.name": "drak"})
    with pytest.raises(UserError, match="did you mean 'dark'"):
        decoding.check(config)


def moments_by_hand(image, radius):
    """The covariance of pixel centres under a map, in the window round its largest value."""
    row, column = np.unravel_index(image.argmax(), image.shape)
    places, weights = [], []
    for i in range(max(0, row - radius), min(image.shape[0], row + radius + 1)):
        for j in range(max(0, column - radius), min(image.shape[1], column + radius + 1)):
            places.append((j, i))
            weights.append(image[i, j])
    return np.cov(np.array(places, float).T, aweights=weights, ddof=0)


@pytest.mark.parametrize("kind", ["peak", "logits"])
@given(
    x=st.floats(0, 40),
    y=st.floats(0, 30),
    spread=st.tuples(st.floats(0.6, 2.5), st.floats(0.6, 2.5), st.floats(-0.8, 0.8)),
)
@properties
def test_covariance_is_that_of_the_map_round_its_peak(kind, x, y, spread):
    sx, sy, correlation = spread
    columns, rows = np.meshgrid(np.arange(41.0), np.arange(31.0))
    u, v = (columns - x) / sx, (rows - y) / sy
    logs = -(u * u - 2 * correlation * u * v + v * v) / (2 * (1 - correlation**2))
    maps = (np.exp(logs) if kind == "peak" else logs)[None, :, :, None]
    found = covariance(maps.astype(np.float32), kind, 2.5)[0, 0]
    expected = moments_by_hand(np.exp(logs), radius=8)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_covariance_comes_in_pixels_of_the_input():
    """A Gaussian of one heatmap pixel, far from any border, at strides of 2 and 3."""
    config = make_config(
        **{
            "loss.name": "mse",
            "data.image_size": (60, 90),
            "targets.heatmap_size": (30, 30),
            "targets.sigma": 1.0,
        }
    )
    maps = targets.render(np, np.array([[[44.0, 29.0]]]), config)
    (found,) = np.asarray(decode(config, maps.astype(np.float32)).covariance)[0]
    # A Gaussian that is cut off at 3.5 σ has lost 0.6 % of its variance.
    np.testing.assert_allclose(found, np.diag([9.0, 4.0]), rtol=0.01, atol=1e-3)

"""What a config makes of the losses: the auxiliary coordinate term, equal energy, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from heatmap import losses, objective, targets
from heatmap.errors import UserError
from heatmap.keypoints import LABELLED, KeypointSet
from tests.helpers import make_config, quick_jit

SIZE, MAPS = (32, 32), (16, 16)
PAIR = KeypointSet(("a", "b", "c"), interchangeable_pairs=((0, 1),))


def config_for(**overrides):
    return make_config(**{"data.image_size": SIZE, "targets.heatmap_size": MAPS, **overrides})


def batch_of(keypoints, visibility=LABELLED):
    keypoints = np.asarray(keypoints, np.float32)
    return {
        "keypoints": jnp.asarray(keypoints),
        "visibility": jnp.broadcast_to(jnp.asarray(visibility), keypoints.shape[:2]),
        "_mask": jnp.ones(len(keypoints)),
    }


def log_maps(keypoints, config):
    """Perfect logits of points in input pixels."""
    maps = targets.gaussian(np, np.asarray(keypoints, np.float64), SIZE, MAPS, config.targets.sigma)
    return np.log(np.maximum(maps, 1e-30)).astype(np.float32)


@functools.partial(quick_jit, static_argnames=("config", "points"))
def mean(config, points, maps, batch):
    return losses.mean(*objective.compute(config, points, maps, batch))


def value(config, maps, batch, points=PAIR):
    return float(mean(config, points, maps, batch))


SOFT = {"loss.name": "cross_entropy", "decoder.name": "soft_argmax", "targets.sigma": 1.0}


def test_the_coordinate_term_is_the_squared_error_of_what_is_decoded():
    truth = [[[12.0, 14.0], [18.0, 9.0], [15.0, 20.0]]]
    shifted = np.array(truth) + np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    plain = config_for(**SOFT)
    both = config_for(**SOFT, **{"loss.coordinate_weight": 10.0})
    maps = log_maps(shifted, plain)
    term = value(both, maps, batch_of(truth)) - value(plain, maps, batch_of(truth))
    # Mean over x and y of each point, in shares of the picture's 32 pixels; then over points.
    by_hand = 10.0 * np.mean([(2 / 32) ** 2 / 2, (1 / 32) ** 2 / 2, 0.0])
    assert term == pytest.approx(by_hand, rel=2e-3)


def test_the_order_is_chosen_by_both_terms_together():
    truth = [[[12.0, 14.0], [18.0, 9.0], [15.0, 20.0]]]
    crossed = np.array(truth)[:, [1, 0, 2]]
    config = config_for(**SOFT, **{"loss.coordinate_weight": 10.0, "loss.interchangeable": True})
    maps = log_maps(crossed, config)
    assert value(config, maps, batch_of(truth)) == pytest.approx(0, abs=1e-4)
    ordered = config_for(**SOFT, **{"loss.coordinate_weight": 10.0})
    assert value(ordered, maps, batch_of(truth)) > 0.1


@pytest.mark.parametrize("name", ["soft_argmax", "local_soft_argmax", "dark"])
def test_the_coordinate_term_pulls_the_decoded_point_to_the_truth(name):
    settings = {**SOFT, "decoder.name": name}
    plain, both = (config_for(**settings, **{"loss.coordinate_weight": w}) for w in (0.0, 1e3))
    truth, shifted = [[[14.0, 15.0]]], [[[15.0, 15.0]]]
    maps, batch = jnp.asarray(log_maps(shifted, plain)), batch_of(truth)
    one = KeypointSet(("a",))

    def term(m):
        return losses.mean(*objective.compute(both, one, m, batch)) - losses.mean(
            *objective.compute(plain, one, m, batch)
        )

    gradient = quick_jit(jax.grad(term))(maps)  # at once, not one operation at a time
    assert np.isfinite(gradient).all()
    assert float(term(maps - 1e-2 * gradient / jnp.abs(gradient).max())) < float(term(maps))


def test_points_that_do_not_count_have_no_coordinate_term():
    config = config_for(**SOFT, **{"loss.coordinate_weight": 10.0})
    truth = np.array([[[12.0, 14.0], [18.0, 9.0], [15.0, 20.0]]])
    maps = log_maps(truth, config)
    off = truth.copy()
    off[:, 2] = [5.0, 5.0]
    hidden = np.array([[LABELLED, LABELLED, 0]])
    assert value(config, maps, batch_of(off, hidden)) == pytest.approx(0, abs=1e-4)
    off[:, 2] = [-20.0, 5.0]  # out of the picture
    assert value(config, maps, batch_of(off)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_equal_energy_makes_the_sum_of_squares_the_same_for_every_sigma(sigma):
    config = make_config(
        **{"targets.heatmap_size": (64, 64), "targets.sigma": sigma, "targets.equal_energy": True}
    )
    maps = targets.render(np, np.array([[[64.0, 60.0]]]), config)
    assert (maps**2).sum() == pytest.approx(np.pi * 2.0**2, rel=1e-3)
    assert (maps.max() > 1) == (sigma < 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"targets.equal_energy": True, **SOFT}, "targets.equal_energy=True changes nothing"),
        (
            {"loss.coordinate_weight": 1.0, "decoder.name": "argmax"},
            r"'argmax' has no gradient; choose .*dark",
        ),
    ],
)
def test_settings_that_contradict_the_loss_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        objective.check(config_for(**settings), "heatmaps")


def test_a_coordinate_weight_is_refused_where_coordinates_are_trained():
    config = config_for(**{"loss.name": "coordinate_mse", "loss.coordinate_weight": 1.0})
    with pytest.raises(UserError, match="trains coordinates already"):
        objective.check(config, "coordinates")

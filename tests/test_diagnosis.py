"""Collapse is told by the right sign for each loss, and perfect maps never look like it."""

import jax.numpy as jnp
import numpy as np
import pytest

from heatmap import diagnosis, targets
from heatmap.predictions import Predictions
from tests.helpers import decode, make_config

NAMES = ("a", "b")
MAPS = (64, 64)


def predictions_of(maps, config):
    """Reads maps [N, h, w, 2]; every point is labelled."""
    found = decode(config, jnp.asarray(maps, jnp.float32))
    n = len(maps)
    texts, zeros = np.full(n, "", dtype="U1"), np.zeros(n)
    return Predictions(
        ids=np.arange(n).astype(str),
        instances=np.zeros(n, int),
        groups=texts,
        predicted=np.asarray(found.keypoints),
        score=np.asarray(found.score),
        entropy=np.asarray(found.entropy),
        height=np.asarray(found.height),
        truth=np.asarray(found.keypoints),
        weight=np.ones((n, 2)),
        boxes=np.zeros((n, 4)),
        areas=zeros,
        sizes=np.ones((n, 2), int),
        px_per_cm=zeros,
        species=texts,
        dataset=texts,
    )


def config_for(loss, sigma=2.0, **overrides):
    return make_config(**{"loss.name": loss, "targets.sigma": sigma, **overrides})


def verdict(maps, config, step=1000):
    scores = diagnosis.measure(predictions_of(maps, config), NAMES, MAPS)
    return diagnosis.collapsed(scores, NAMES, config, step)


def perfect(sigma, n=8):
    points = np.random.default_rng(0).uniform(20, 100, (n, 2, 2))
    return targets.gaussian(np, points, (128, 128), MAPS, sigma)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("equal_energy", [False, True])
def test_perfect_maps_of_squared_error_have_not_collapsed(sigma, equal_energy):
    """Though the softmax of such a map is nearly uniform."""
    config = config_for("mse", sigma, **{"targets.equal_energy": equal_energy})
    maps = perfect(sigma) * targets.peak(config.targets)
    assert verdict(maps, config) == ""
    softmax = np.exp(maps) / np.exp(maps).sum((1, 2), keepdims=True)
    assert -(softmax * np.log(softmax)).sum((1, 2)).mean() > 0.99 * np.log(64 * 64)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_perfect_maps_of_cross_entropy_have_not_collapsed(sigma):
    config = config_for("cross_entropy", sigma)
    maps = np.log(np.maximum(perfect(sigma), 1e-30))
    assert verdict(maps, config) == ""
    entropy = diagnosis.measure(predictions_of(maps, config), NAMES, MAPS)["maps/entropy"]
    assert entropy == pytest.approx(1 + np.log(2 * np.pi) + 2 * np.log(sigma), abs=0.01)


def test_empty_maps_have_collapsed_after_a_thousand_steps_and_are_named():
    maps = perfect(2.0)
    maps[..., 1] *= 0.05
    config = config_for("mse")
    assert verdict(maps, config, step=999) == ""
    assert verdict(maps, config, step=1000).startswith("Step 1000: the maps of b reach less than")


def test_flat_maps_have_collapsed_under_cross_entropy():
    flat = np.random.default_rng(0).normal(0, 0.01, (4, *MAPS, 2))
    sentence = verdict(flat, config_for("cross_entropy"), step=1)
    assert sentence.startswith("Step 1: the maps of a, b are as flat")


def test_unlabelled_points_do_not_count():
    config = config_for("mse")
    maps = perfect(2.0)
    maps[4:] = 0
    found = predictions_of(maps, config)
    weight = np.ones((8, 2))
    weight[4:] = 0
    found = Predictions(**{**vars(found), "weight": weight})
    scores = diagnosis.measure(found, NAMES, MAPS)
    assert scores["maps/max_logit/a"] > 0.9
    assert scores["maps/near_uniform"] == 0


def test_a_model_without_maps_has_no_diagnosis():
    config = config_for("mse")
    found = predictions_of(perfect(2.0), config)
    blank = Predictions(**{**vars(found), "height": np.full((8, 2), np.nan)})
    assert diagnosis.measure(blank, NAMES, MAPS) == {}
    coordinates = make_config(**{"model.name": "regression", "loss.name": "coordinate_mse"})
    assert diagnosis.collapsed({}, NAMES, coordinates, 5000) == ""

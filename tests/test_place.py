"""Rendered mixtures of targets: the covariance of the place goes in, and has to come out."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from heatmap import targets
from heatmap.inference import place
from heatmap.inference.predictor import in_original_pixels
from tests.helpers import decode, make_config
from tests.test_uncertainty import instances

STRIDES = np.array([4.0, 2.0])  # across and down


def config_of(sigma, loss="mse"):
    decoder = "dark" if loss == "mse" else "soft_argmax"
    return make_config(
        **{
            "data.image_size": (64, 128),
            "targets.heatmap_size": (32, 32),
            "targets.sigma": sigma,
            "loss.name": loss,
            "decoder.name": decoder,
        }
    )


def recovered(config, covariance, unit=(1.0, 1.0)):
    """Says what `place` makes of 16 points that lie as a Gaussian says, [16, 2, 2].

    The maps are those of a perfect network: the mean of the targets at all places where the point
    may be, by Gauss-Hermite quadrature. All covariances are in pixels of the map.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    normal = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 1, 2)
    weight = np.outer(weights, weights).ravel()
    centres = np.random.default_rng(0).uniform(14.5, 16.5, (16, 2))  # anywhere in a pixel
    places = centres + normal @ np.linalg.cholesky(covariance).T  # [400, 16, 2]
    drawn = targets.render(np, ((places + 0.5) * STRIDES - 0.5).astype(np.float32), config)
    maps = jnp.asarray(np.tensordot(weight / weight.sum(), drawn, axes=1), jnp.float32)[None]
    if config.loss.name == "cross_entropy":
        maps = jnp.log(jnp.maximum(maps, 1e-30))
    affine = np.diag([1 / unit[0], 1 / unit[1], 1.0])[None]
    points, wide, _ = in_original_pixels(decode(config, maps), affine)
    cell = STRIDES * unit
    return place.covariances(instances(points, wide, unit=unit), config)[0] / np.outer(cell, cell)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("sd", [0.2, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_a_known_spread_is_recovered(sigma, sd, loss):
    """On average over sub-pixel positions within 2 %, at each of them within 0.03 pixels."""
    found = recovered(config_of(sigma, loss), sd**2 * np.eye(2))
    roots = np.sqrt(np.diagonal(found, axis1=1, axis2=2))
    np.testing.assert_allclose(roots.mean(), sd, rtol=0.02)
    np.testing.assert_allclose(roots, sd, atol=0.03)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
def test_an_ellipse_keeps_its_axes(sigma):
    """Whatever the pixels of the map are in those of the picture."""
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    covariance = turn @ np.diag([1.0, 0.16]) @ turn.T
    found = recovered(config_of(sigma), covariance, unit=(3.0, 0.5)).mean(axis=0)
    np.testing.assert_allclose(found, covariance, atol=0.04)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_a_perfect_map_says_little_and_never_nothing(sigma):
    """Half of all perfect maps look narrower than the average one; none is known exactly."""
    found = recovered(config_of(sigma), 1e-12 * np.eye(2))
    roots = np.sqrt(np.linalg.eigvalsh(found))
    assert roots.min() > 0.03
    assert roots.max() < 0.1 or sigma < 1
    assert roots.max() < 0.25


def test_what_fills_its_window_is_wide_and_finite():
    config = config_of(2.0)
    even = 6 * 7 / 3 * np.outer(STRIDES, STRIDES) * np.eye(2)
    found = instances(np.zeros((1, 3, 2)), np.broadcast_to(even, (1, 3, 2, 2)).copy())
    widest = np.sqrt(place.covariances(found, config)[0, 0, [0, 1], [0, 1]]) / STRIDES
    np.testing.assert_allclose(widest, widest[0])
    assert 2.2 * 2.0 < widest[0] < 20


def test_without_maps_nothing_is_said():
    found = instances(np.zeros((2, 3, 2)))
    assert np.isnan(place.covariances(found, config_of(2.0))).all()
    some = np.full((2, 3, 2, 2), np.nan)
    some[0, 1] = 20 * np.eye(2)
    told = place.covariances(dataclasses.replace(found, covariance=some), config_of(2.0))
    assert np.isfinite(told[0, 1]).all()
    assert np.isnan(told[1]).all()

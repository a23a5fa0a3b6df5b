"""Models that vote, also in the mirror: what is averaged, and in which order of pairs."""

import dataclasses
import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import decoding
from heatmap import run as run_lib
from heatmap.errors import UserError
from heatmap.inference import predictor as predictor_lib
from heatmap.inference.predictor import Predictor
from heatmap.keypoints import KeypointSet
from tests.helpers import decode, make_config, properties, quick_jit

POINTS = KeypointSet(
    names=("nose", "left", "right", "head", "tail"),
    flip_pairs=((1, 2),),
    interchangeable_pairs=((3, 4),),
)
KINDS = {
    "peak": {"loss.name": "mse"},
    "logits": {"loss.name": "cross_entropy", "decoder.name": "soft_argmax"},
    "coordinates": {"model.name": "regression", "loss.name": "coordinate_mse"},
}


@functools.cache
def build(kind, seed=0, points=POINTS, **overrides):
    settings = {"data.image_size": (32, 48), "targets.heatmap_size": (16, 24)}
    config = make_config(**{**settings, **KINDS[kind], "seed": seed, **overrides})
    run = run_lib.build(config, points)
    if kind != "coordinates":  # a fresh head is nearly zero: maps would have no peaks to speak of
        head = run.weights["params"]["head"]
        head["kernel"] = 1e3 * head["kernel"]
    return run


def pictures(count=4, size=(32, 48)):
    return np.random.default_rng(1).integers(0, 256, (count, *size, 1), dtype=np.uint8)


def output_of(run):
    pixels = run_lib.normalise_pixels(pictures(), run.config)
    return np.asarray(quick_jit(run.network.predict)(run.weights, pixels))


@pytest.mark.parametrize("kind", KINDS)
def test_one_model_without_a_mirror_is_that_model(kind):
    run = build(kind)
    found = Predictor([run])(pictures())
    alone = decode(run.config, output_of(run))
    np.testing.assert_allclose(found.keypoints, alone.keypoints, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mirrored_picture_has_the_mirrored_answer(kind):
    """Whatever the network: with the mirror, left and right change places and x is turned."""
    predictor = Predictor([build(kind)], flip=True)
    found = np.asarray(predictor(pictures()).keypoints)
    mirrored = np.asarray(predictor(pictures()[:, :, ::-1]).keypoints)
    turned = mirrored[:, [0, 2, 1, 3, 4]] * [-1, 1] + [47, 0]
    np.testing.assert_allclose(found, turned, atol=2e-3)
    alone = np.asarray(Predictor([build(kind)])(pictures()).keypoints)
    assert np.abs(alone - found).max() > 0.01  # the mirror does have a say


@pytest.mark.slow
def test_what_is_averaged():
    """Maps of squared error as they are, logits as probabilities, coordinates as they are."""
    images = pictures()
    for kind in KINDS:
        runs = [build(kind, seed) for seed in (0, 1)]
        outputs = [output_of(run) for run in runs]
        if kind == "logits":
            outputs = [np.exp(o - o.max((1, 2), keepdims=True)) for o in outputs]
            outputs = [o / o.sum((1, 2), keepdims=True) for o in outputs]
        mean = (outputs[0] + outputs[1]) / 2
        mean = np.log(mean) if kind == "logits" else mean
        expected = decode(runs[0].config, mean).keypoints
        np.testing.assert_allclose(Predictor(runs)(images).keypoints, expected, atol=1e-2)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]))
@properties
def test_pairs_are_put_into_the_nearest_order(seed, axis):
    """Against all orders of both pairs, tried one by one."""
    rng = np.random.default_rng(seed)
    shape = (3, 5, 2) if axis == 1 else (3, 2, 2, 5)
    first, other = rng.normal(size=shape), rng.normal(size=shape)
    pairs = ((0, 3), (1, 2))
    found = np.asarray(
        predictor_lib._in_order_of(jnp.asarray(first), jnp.asarray(other), pairs, axis)
    )
    for i in range(len(first)):
        costs = {}
        for swaps in itertools.product((False, True), repeat=2):
            order = list(range(5))
            for (a, b), swap in zip(pairs, swaps, strict=True):
                if swap:
                    order[a], order[b] = b, a
            candidate = np.take(other[i], order, axis - 1)
            costs[float(((candidate - first[i]) ** 2).sum())] = candidate
        np.testing.assert_allclose(found[i], costs[min(costs)], rtol=1e-6)


def test_models_of_other_questions_do_not_vote_together():
    others = dataclasses.replace(POINTS, names=("a", "b", "c", "d", "e"))
    with pytest.raises(UserError, match="must find the same points"):
        Predictor([build("peak"), build("peak", points=others)])
    with pytest.raises(UserError, match=r"targets\.sigma=2\.0 and 3\.0"):
        Predictor([build("peak"), build("peak", **{"targets.sigma": 3.0})])


def test_the_identity_is_that_of_the_answers():
    run = build("peak")
    same = Predictor([run]).identity()
    assert Predictor([build("peak")]).identity() == same
    decoder = dataclasses.replace(run.config.decoder, name="argmax")
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, decoder=decoder))
    elsewhere = dataclasses.replace(run.config.data, root="moved", workers=3)
    moved = dataclasses.replace(run, config=dataclasses.replace(run.config, data=elsewhere))
    assert Predictor([moved]).identity() == same
    different = [
        Predictor([run], flip=True),
        Predictor([build("peak", seed=1)]),
        Predictor([run, build("peak", seed=1)]),
        Predictor([other]),
    ]
    identities = {p.identity() for p in different}
    assert len(identities) == 4
    assert same not in identities


def test_covariances_are_taken_to_the_picture():
    """By samples: points drawn in the input, and taken to the picture one by one."""
    from heatmap import geometry

    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 1.5], [1.5, 2.0]])
    affine = geometry.crop_and_resize((10.0, 20.0, 110.0, 60.0), (32, 48))
    drawn = rng.multivariate_normal([7.0, 9.0], covariance, 200_000)
    there = geometry.apply(geometry.invert(affine), drawn)
    blank = np.full((1, 1), np.nan)
    decoded = decoding.Decoded(
        np.array([[[7.0, 9.0]]]), blank, blank, blank, covariance[None, None]
    )
    points, found, unit = predictor_lib.in_original_pixels(decoded, affine[None])
    np.testing.assert_allclose(points[0, 0], there.mean(0), atol=0.05)
    np.testing.assert_allclose(found[0, 0], np.cov(there.T), rtol=0.02)
    np.testing.assert_allclose(unit, [[100 / 48, 40 / 32]])


def test_a_mirror_that_would_swap_sides_unnoticed_is_refused():
    names = ("nose", "left_hand", "right_hand", "tail")
    unpaired = build("peak", points=KeypointSet(names))
    with pytest.raises(UserError, match=r"left_hand/right_hand crosswise.*data\.flip_pairs=\"\(\("):
        Predictor([unpaired], flip=True)
    Predictor([unpaired])
    for pairs in ("flip_pairs", "interchangeable_pairs"):
        Predictor([build("peak", points=KeypointSet(names, **{pairs: ((1, 2),)}))], flip=True)

"""The ceiling where the order of a pair cannot be seen, by hand and by simulation."""

import dataclasses

import numpy as np
import pytest

from heatmap import metrics, pairs
from heatmap.keypoints import KeypointSet
from tests.predicted import CONFIG, UNSEEN, build, random


def test_order_ceiling_by_hand():
    # Diagonals of 100, 100 and 0 px; at t = 0.1 a pair is a guess if more than 20 px apart.
    truth = np.zeros((4, 4, 2))
    truth[:2, 3] = 60, 80
    truth[0, 1], truth[0, 2] = (10, 10), (30, 10)  # 20 px: the midpoint is right for both
    truth[1, 1], truth[1, 2] = (10, 10), (31, 10)  # a guess
    truth[3] = truth[1]
    weight = np.ones((4, 4))
    weight[3, 2] = 0  # a lone label is no guess
    points = KeypointSet(tuple("abcd"), interchangeable_pairs=((1, 2),), order_known=False)
    predictions = build(truth, truth, weight)
    reference = metrics.bbox_reference(predictions, points)
    np.testing.assert_allclose(reference, [100, 100, 0, 100])
    mean, low, high = pairs.order_ceiling(truth, weight, points, 0.1, reference)
    assert mean == pytest.approx(10 / 11)
    assert (low, high) == (pytest.approx(10 / 11 - 1.96 / 11), 1.0)
    scores = metrics.pck(predictions, points, CONFIG)
    assert scores["pck@0.1/ceiling"] == pytest.approx(10 / 11)
    assert scores["pck@0.1/ceiling/low"] == pytest.approx(low)
    assert scores["pck@0.1/ceiling/high"] == 1.0
    seen = dataclasses.replace(points, order_known=True)
    assert not any("ceiling" in key for key in metrics.pck(predictions, seen, CONFIG))


def test_order_ceiling_equals_a_simulation():
    base = random(8, n=150, images=150, labelled=0.85)
    config = dataclasses.replace(CONFIG, pck_thresholds=(0.1,), pck_references=("bbox",))
    scores = metrics.pck(base, UNSEEN, config)
    limit = 2 * 0.1 * metrics.bbox_reference(base, UNSEEN)
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(600):  # the best model: midpoints of near pairs, else an order at random
        predicted = base.truth.copy()
        for a, b in UNSEEN.interchangeable_pairs:
            both = (base.weight[:, a] > 0) & (base.weight[:, b] > 0)
            near = np.linalg.norm(base.truth[:, a] - base.truth[:, b], axis=1) <= limit * (1 - 1e-9)
            middle = (base.truth[:, a] + base.truth[:, b]) / 2
            predicted[near & both, a] = predicted[near & both, b] = middle[near & both]
            wrong = ~near & both & (rng.random(len(near)) < 0.5)
            predicted[wrong, a], predicted[wrong, b] = base.truth[wrong, b], base.truth[wrong, a]
        guess = dataclasses.replace(base, predicted=predicted)
        reached.append(metrics.pck(guess, UNSEEN, config)["pck@0.1"])
    assert np.mean(reached) == pytest.approx(scores["pck@0.1/ceiling"], abs=0.003)
    half = (scores["pck@0.1/ceiling/high"] - scores["pck@0.1/ceiling/low"]) / 2
    assert 1.96 * np.std(reached) == pytest.approx(half, rel=0.12)

"""Scores against hand computation, brute force and their own symmetries."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from heatmap import metrics
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from tests.helpers import properties
from tests.predicted import CONFIG, ORDERED, POINTS, SEEDS, UNSEEN, assert_same, build, random

# The value that a perfect prediction earns: a new metric has to say it here.
BEST = {"pck": 1.0, "error_px": 0.0, "oks_ap": 1.0, "lines": 0.0}
ORDER_FREE = {"lines"}  # of which every number disregards the order of interchangeable pairs
NOT_SCORES = ("/excluded", "/ceiling", "/low", "/high", "labelled_points", "oob_points_frac")


# Every metric of the table.


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_perfect_prediction_is_best(name):
    predictions = random(1, labelled=0.9)
    perfect = dataclasses.replace(predictions, predicted=predictions.truth)
    scores = metrics.METRICS[name].measure(perfect, UNSEEN, CONFIG)
    assert scores
    for key, value in scores.items():
        assert isinstance(key, str)
        assert type(value) is float
        if not key.endswith(NOT_SCORES):
            assert value == pytest.approx(BEST[name], abs=1e-12), key


@pytest.mark.parametrize("name", metrics.METRICS)
def test_a_worse_prediction_is_not_best(name):
    for key, value in metrics.METRICS[name].measure(random(2), POINTS, CONFIG).items():
        if not key.endswith(NOT_SCORES) and "pck_image" not in key and "@0.2" not in key:
            assert abs(value - BEST[name]) > 0.01, key


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("name", metrics.METRICS)
def test_no_label_gives_nan_without_a_warning(name, count):
    unlabelled = random(3, n=count, labelled=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.METRICS[name].measure(unlabelled, UNSEEN, CONFIG)
    assert scores
    for key, value in scores.items():
        assert value == 0 if key.endswith(("/excluded", "labelled_points")) else np.isnan(value)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_values_of_unlabelled_points_and_of_a_lost_prediction_make_no_warning(name):
    predictions = random(4)
    truth = np.where(predictions.weight[..., None] > 0, predictions.truth, np.nan)
    blank = dataclasses.replace(predictions, truth=truth)
    assert_same(*(metrics.METRICS[name].measure(p, UNSEEN, CONFIG) for p in (predictions, blank)))
    lost = dataclasses.replace(blank, predicted=blank.predicted.copy())
    lost.predicted[::3] = np.nan
    lost.predicted[1::3, :, 0] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metrics.METRICS[name].measure(lost, UNSEEN, CONFIG)
    assert not any(np.isnan(value) for value in scores.values())


@pytest.mark.parametrize("name", metrics.METRICS)
@properties
@given(seed=SEEDS)
def test_the_order_of_instances_does_not_matter(name, seed):
    predictions = random(seed)
    predictions.score[:6] = np.nan  # equal confidences
    order = np.random.default_rng(seed).permutation(len(predictions.ids))
    metric = metrics.METRICS[name].measure
    assert_same(
        metric(predictions, UNSEEN, CONFIG), metric(predictions.take(order), UNSEEN, CONFIG)
    )


def relabelled(predictions, seed):
    """Exchanges the truth of interchangeable pairs, labels and all, in half of the instances."""
    truth, weight = predictions.truth.copy(), predictions.weight.copy()
    rng = np.random.default_rng(seed)
    for a, b in POINTS.interchangeable_pairs:
        rows = rng.random(len(truth)) < 0.5
        truth[rows, a], truth[rows, b] = predictions.truth[rows, b], predictions.truth[rows, a]
        weight[rows, a], weight[rows, b] = predictions.weight[rows, b], predictions.weight[rows, a]
    return dataclasses.replace(predictions, truth=truth, weight=weight)


# One sigma for both of a pair: else OKS itself minds which is which.
EVEN = dataclasses.replace(POINTS, oks_sigmas=(0.03, 0.06, 0.06, 0.1, 0.1))


@pytest.mark.parametrize("name", metrics.METRICS)
@properties
@given(seed=SEEDS)
def test_unordered_scores_do_not_mind_the_order_of_the_truth(name, seed):
    predictions = random(seed)
    first, second = (
        metrics.METRICS[name].measure(p, EVEN, CONFIG)
        for p in (predictions, relabelled(predictions, seed))
    )
    for key in first:
        if "/unordered" in key or name in ORDER_FREE:
            assert first[key] == pytest.approx(second[key], rel=1e-9), key


@pytest.mark.parametrize("name", sorted(metrics.METRICS.keys() - ORDER_FREE))
def test_ordered_scores_do_mind_the_order_of_the_truth(name):
    predictions = random(11, n=40, labelled=1.0)
    key = "pck@0.1" if name == "pck" else name
    first, second = (
        metrics.METRICS[name].measure(p, EVEN, CONFIG)[key]
        for p in (predictions, relabelled(predictions, 0))
    )
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("name", sorted(metrics.METRICS.keys() - ORDER_FREE))
def test_unordered_keys_only_where_a_pair_is_interchangeable(name):
    scores = metrics.METRICS[name].measure(random(5), ORDERED, CONFIG)
    assert not any("unordered" in key for key in scores)
    assert scores.items() <= metrics.METRICS[name].measure(random(5), POINTS, CONFIG).items()


# PCK.


def test_pck_by_hand():
    truth = [[[10, 10], [40, 50], [20, 20]]]  # extent 30 × 40: a diagonal of 50, so 5 px at 0.1
    predicted = [[[13, 14], [40, 55.001], [900, 900]]]
    points = KeypointSet(("a", "b", "c"), torso=((0,), (1, 2)))
    scores = metrics.pck(build(predicted, truth, [[1, 1, 0]]), points, CONFIG)
    assert scores["pck@0.1"] == 0.5
    assert (scores["pck@0.1/a"], scores["pck@0.1/b"]) == (1.0, 0.0)
    assert np.isnan(scores["pck@0.1/c"])
    assert scores["pck@0.05"] == 0.0
    assert scores["pck_image@0.05"] == 1.0  # 0.05 · hypot(120, 160) = 10 px
    assert np.isnan(scores["pck_torso@0.1"])  # c is not labelled
    assert (scores["pck/excluded"], scores["pck_torso/excluded"]) == (0.0, 1.0)
    # All labelled: from a to the mean (30, 35) of b and c are hypot(20, 25) = 32.02 px.
    scores = metrics.pck(build(predicted, truth), points, CONFIG)
    assert scores["pck_torso@0.15"] == 0.0  # 4.8 px, just short of a's 5
    assert scores["pck_torso@0.2"] == 2 / 3  # 6.4 px


@properties
@given(seed=SEEDS)
def test_pck_equals_a_loop(seed):
    predictions = random(seed)
    config = dataclasses.replace(CONFIG, pck_thresholds=(0.03, 0.1))
    scores = metrics.pck(predictions, POINTS, config)
    for t, name in itertools.product(config.pck_thresholds, ("bbox", "torso", "image")):
        right = []
        for p, q, w, size in zip(
            predictions.predicted,
            predictions.truth,
            predictions.weight,
            predictions.sizes,
            strict=True,
        ):
            seen = q[w > 0]
            if name == "bbox":
                length = np.linalg.norm(np.ptp(seen, axis=0)) if len(seen) else 0
            elif name == "torso":
                ok = w[0] and w[3] and w[4]
                length = np.linalg.norm(q[0] - (q[3] + q[4]) / 2) if ok else 0
            else:
                length = np.linalg.norm(size)
            for k in range(POINTS.count):
                if w[k] and length:
                    right.append(np.linalg.norm(p[k] - q[k]) <= t * length)
        key = f"pck@{t}" if name == "bbox" else f"pck_{name}@{t}"
        assert scores[key] == pytest.approx(np.mean(right) if right else np.nan, nan_ok=True)


@properties
@given(seed=SEEDS)
def test_pck_grows_with_the_threshold(seed):
    config = dataclasses.replace(CONFIG, pck_thresholds=tuple(np.linspace(0.01, 0.5, 12)))
    scores = metrics.pck(random(seed), UNSEEN, config)
    low, *_ = config.pck_thresholds
    keys = [key for key in scores if f"@{low:g}" in key]
    assert "pck@0.01/ceiling/low" in keys
    for key in keys:
        values = [scores[key.replace(f"@{low:g}", f"@{t:g}")] for t in config.pck_thresholds]
        assert values == sorted(values) or np.isnan(values).all(), key


@properties
@given(seed=SEEDS, factor=st.floats(0.1, 10), shift=st.floats(-1e3, 1e3))
def test_pck_by_bbox_does_not_mind_scale_and_place(seed, factor, shift):
    predictions = random(seed)
    moved = dataclasses.replace(
        predictions,
        predicted=predictions.predicted * factor + shift,
        truth=predictions.truth * factor + shift,
    )
    config = dataclasses.replace(CONFIG, pck_references=("bbox",))
    assert_same(*(metrics.pck(p, UNSEEN, config) for p in (predictions, moved)))


def test_instances_without_extent_are_excluded_and_counted():
    truth = np.array([[[5, 5], [9, 9]], [[5, 5], [5, 5]], [[5, 5], [9, 9]], [[5, 5], [9, 9]]])
    predicted = truth.copy()
    predicted[1:, :, 0] += 50
    weight = [[1, 1], [1, 1], [0, 1], [0, 0]]
    predictions = build(predicted, truth, weight)
    scores = metrics.pck(predictions, KeypointSet(("a", "b")), CONFIG)
    assert scores["pck@0.05"] == 1.0
    assert scores["pck/excluded"] == 2.0  # one extent of zero, one single label; no label is none
    assert scores["pck_image@0.05"] == 2 / 5
    assert not any("torso" in key for key in scores)


def test_pck_is_measured_only_against_the_references_asked_for():
    config = dataclasses.replace(CONFIG, pck_references=("image",), pck_thresholds=(0.05, 0.1))
    assert set(metrics.pck(random(6), UNSEEN, config)) == {
        "pck_image/excluded",
        "pck_image@0.05",
        "pck_image@0.05/unordered",
        "pck_image@0.1",
        "pck_image@0.1/unordered",
    }


# Pixel error.


@properties
@given(seed=SEEDS)
@example(seed=51181)  # a labelled point lies beyond the right edge of its picture
def test_error_equals_a_direct_computation(seed):
    p = random(seed)
    errors = np.sqrt(((p.predicted - p.truth) ** 2).sum(-1))
    seen = errors[p.weight > 0]
    # Pixels are their centres: the last edge is half a pixel beyond the last of them.
    beyond = (p.truth < -0.5) | (p.truth > p.sizes[:, None, ::-1] - 0.5)
    expected = {
        "error_px": seen.mean(),
        "error_px/median": np.median(seen),
        "error_px/p95": np.quantile(seen, 0.95),
        "error_px/max": seen.max(),
        "error_px/rmse": np.sqrt((seen**2).mean()),
        "labelled_points": len(seen),
        "oob_points_frac": beyond.any(-1)[p.weight > 0].mean(),
    }
    for k, name in enumerate(POINTS.names):
        labelled = errors[p.weight[:, k] > 0, k]
        expected[f"error_px/{name}"] = labelled.mean() if len(labelled) else np.nan
    assert_same(metrics.error_px(p, ORDERED, CONFIG), expected)


@properties
@given(seed=SEEDS)
def test_unordered_error_is_the_least_over_all_orders(seed):
    p = random(seed, n=6)
    errors = metrics.error_px(p, POINTS, CONFIG)
    assert errors["error_px/unordered"] <= errors["error_px"]
    total = 0.0
    for predicted, truth, weight in zip(p.predicted, p.truth, p.weight, strict=True):
        sums = []
        for order in ([0, 1, 2, 3, 4], [0, 2, 1, 3, 4], [0, 1, 2, 4, 3], [0, 2, 1, 4, 3]):
            distance = np.linalg.norm(predicted - truth[order], axis=1)
            sums.append(np.sum(distance * weight[order]))
        total += min(sums)
    assert errors["error_px/unordered"] == pytest.approx(total / p.weight.sum())


def test_a_lone_label_of_a_pair_takes_its_weight_along():
    points = KeypointSet(("a", "b"), interchangeable_pairs=((0, 1),))
    predictions = build([[[50, 0], [1, 0]]], [[[0, 0], [999, 999]]], [[1, 0]])
    before = dataclasses.replace(predictions, truth=predictions.truth.copy())
    swapped = metrics.interchange(predictions, points)
    np.testing.assert_array_equal(swapped.weight, [[0, 1]])
    np.testing.assert_array_equal(swapped.truth, [[[999, 999], [0, 0]]])
    assert metrics.error_px(predictions, points, CONFIG)["error_px/unordered/max"] == 1.0
    np.testing.assert_array_equal(predictions.truth, before.truth)  # the input is left alone


def test_a_lost_prediction_is_infinitely_far():
    truth = np.array([[[0, 0], [10, 0], [20, 0], [30, 0]]])
    predicted = truth + np.array([0.0, 1.0])
    predicted[0, 0] = np.nan
    points = KeypointSet(("a", "b", "c", "d"), interchangeable_pairs=((0, 1),))
    predictions = build(predicted, truth)
    scores = metrics.score(predictions, points, CONFIG)
    assert (scores["error_px"], scores["error_px/max"], scores["error_px/rmse"]) == (np.inf,) * 3
    assert scores["error_px/median"] == 1.0
    assert (scores["error_px/a"], scores["error_px/b"]) == (np.inf, 1.0)
    assert (scores["pck@0.1"], scores["pck@0.1/a"]) == (0.75, 0.0)
    # The other member of the pair still decides the order.
    crosswise = build(predicted, truth[:, [1, 0, 2, 3]])
    assert metrics.error_px(crosswise, points, CONFIG)["error_px/unordered/median"] == 1.0
    assert metrics.error_px(crosswise, points, CONFIG)["error_px/median"] > 1.0
    # A lone label goes to the prediction that exists, however far that is.
    lone = build(predicted, truth, [[1, 0, 0, 0]])
    assert metrics.error_px(lone, points, CONFIG)["error_px/unordered"] == np.hypot(10, 1)


# The table and its input.


def test_score_merges_what_the_config_asks_for():
    config = dataclasses.replace(CONFIG, metrics=("error_px", "oks_ap"))
    expected = metrics.error_px(random(9), POINTS, config)
    expected |= metrics.oks_ap(random(9), POINTS, config)
    assert metrics.score(random(9), POINTS, config) == expected


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [("metrics", ("pkc",), "eval.metrics"), ("pck_references", ("bbx",), "eval.pck_references")],
)
def test_unknown_names_are_refused(field, value, hint):
    config = dataclasses.replace(CONFIG, **{field: value})
    with pytest.raises(UserError, match=hint):
        metrics.score(random(10), POINTS, config)


def test_a_column_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="predicted has shape"):
        build(np.zeros((1, 5, 2)), np.zeros((3, 5, 2)))

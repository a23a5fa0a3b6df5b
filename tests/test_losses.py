"""Every entry of LOSSES: values by hand, masks without influence, interchangeable pairs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import losses, objective, targets
from heatmap.errors import UserError
from heatmap.keypoints import ABSENT, LABELLED, UNKNOWN, KeypointSet
from tests.helpers import make_config, properties, quick_jit

SIZE, MAPS, SIGMA = (32, 48), (12, 16), 1.5  # input, heatmaps; strides 3 across and 2.67 down
BATCH = 3
POINTS = KeypointSet(("a", "b", "c", "d", "e"), interchangeable_pairs=((0, 2), (4, 3)))
NAMES = list(losses.LOSSES)
MAP_NAMES = [name for name in NAMES if losses.LOSSES[name].trains != "coordinates"]


def config_for(name, **overrides):
    return make_config(
        **{
            "loss.name": name,
            "data.image_size": SIZE,
            "targets.heatmap_size": MAPS,
            "targets.sigma": SIGMA,
            **overrides,
        }
    )


def make_batch(seed=0, visibility=LABELLED):
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform((2, 2), (45, 29), (BATCH, POINTS.count, 2)).astype(np.float32)
    return {
        "keypoints": keypoints,
        "visibility": np.full((BATCH, POINTS.count), visibility, np.int32),
        "_mask": np.ones(BATCH, np.float32),
    }


def squared_distance(keypoints):
    """From each heatmap pixel to each point, in heatmap pixels², [B, h, w, K]."""
    hx = (keypoints[..., 0].astype(float) + 0.5) * MAPS[1] / SIZE[1] - 0.5
    hy = (keypoints[..., 1].astype(float) + 0.5) * MAPS[0] / SIZE[0] - 0.5
    rows, columns = np.mgrid[: MAPS[0], : MAPS[1]]
    return (columns[..., None] - hx[:, None, None]) ** 2 + (
        rows[..., None] - hy[:, None, None]
    ) ** 2


def perfect(name, keypoints):
    """What a model without error gives for these points."""
    return {
        "peak": lambda: np.exp(-squared_distance(keypoints) / (2 * SIGMA**2)),
        "logits": lambda: 3.0 - squared_distance(keypoints) / (2 * SIGMA**2),
        "coordinates": lambda: (keypoints + 0.5) / np.array(SIZE[::-1]),
    }[losses.LOSSES[name].trains]().astype(np.float32)


def random_prediction(name, seed=1, scale=2.0):
    shape = perfect(name, make_batch()["keypoints"]).shape
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def point(prediction, k):
    """Indexes point k: of the second axis of coordinates, of the last of maps."""
    return (slice(None), k) if prediction.ndim == 3 else (..., k)


def of_one(prediction, b, k):
    """Indexes point k of example b."""
    return (b, k) if prediction.ndim == 3 else (b, ..., k)


computed = quick_jit(objective.compute, static_argnames=("config", "points"))


@functools.partial(quick_jit, static_argnames="config")
@jax.grad
def gradient_of_mean(prediction, batch, config):
    return losses.mean(*objective.compute(config, POINTS, prediction, batch))


def compute(name, prediction, batch, points=POINTS, **overrides):
    return computed(config_for(name, **overrides), points, jnp.asarray(prediction), batch)


def value(name, prediction, batch, **overrides):
    return float(losses.mean(*compute(name, prediction, batch, **overrides)))


def gradient(name, prediction, batch, **overrides):
    config = config_for(name, **overrides)
    return np.asarray(gradient_of_mean(jnp.asarray(prediction), batch, config))


# --- independent references, one example and one point at a time, in float64 ---


def mse_by_hand(predicted, keypoint, visibility):
    truth = np.exp(-squared_distance(keypoint[None, None])[0, ..., 0] / (2 * SIGMA**2))
    if visibility == ABSENT:
        truth = np.zeros(MAPS)
    return np.mean((predicted - truth) ** 2)


def cross_entropy_by_hand(predicted, keypoint, visibility):
    del visibility
    q = np.exp(predicted - predicted.max())
    q /= q.sum()
    p = np.exp(-squared_distance(keypoint[None, None])[0, ..., 0] / (2 * SIGMA**2))
    p /= p.sum()
    return sum(a * np.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0)


def coordinate_mse_by_hand(predicted, keypoint, visibility):
    del visibility
    (x, y), (height, width) = keypoint, SIZE
    return ((predicted[0] - (x + 0.5) / width) ** 2 + (predicted[1] - (y + 0.5) / height) ** 2) / 2


BY_HAND = {
    "mse": mse_by_hand,
    "cross_entropy": cross_entropy_by_hand,
    "coordinate_mse": coordinate_mse_by_hand,
}


def weight_by_hand(name, keypoint, visibility):
    if losses.LOSSES[name].sees_absence:
        return float(visibility in (LABELLED, ABSENT))
    (x, y), (height, width) = keypoint, SIZE
    on_image = -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
    return float(visibility == LABELLED and on_image)


def sums_by_hand(name, prediction, batch, pairs=()):
    """Returns (sum, weight): every example tries every choice of swaps and takes the cheapest."""
    prediction = np.asarray(prediction, np.float64)
    total = weight = 0.0
    for b in range(BATCH):
        if not batch["_mask"][b]:
            continue
        costs = []
        for swaps in itertools.product([False, True], repeat=len(pairs)):
            order = list(range(POINTS.count))
            for (i, j), swap in zip(pairs, swaps, strict=True):
                if swap:
                    order[i], order[j] = j, i
            cost = 0.0
            for k, truth in enumerate(order):  # weight and visibility belong to the truth
                keypoint, seen = batch["keypoints"][b, truth], batch["visibility"][b, truth]
                if weight_by_hand(name, keypoint, seen):
                    cost += BY_HAND[name](prediction[of_one(prediction, b, k)], keypoint, seen)
            costs.append(cost)
        total += min(costs)
        weight += sum(
            weight_by_hand(name, *both)
            for both in zip(batch["keypoints"][b], batch["visibility"][b], strict=True)
        )
    return total, weight


# --- values ---


def test_every_loss_has_a_reference_by_hand():
    assert set(BY_HAND) == set(losses.LOSSES)


@pytest.mark.parametrize("name", NAMES)
def test_perfect_prediction_costs_nothing_and_is_a_minimum(name):
    batch = make_batch()
    prediction = perfect(name, batch["keypoints"])
    assert value(name, prediction, batch) == pytest.approx(0.0, abs=1e-6)
    assert np.abs(gradient(name, prediction, batch)).max() < 1e-6
    for seed in range(3):
        noise = random_prediction(name, seed, scale=0.3)
        assert value(name, prediction + noise, batch) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("interchangeable", [False, True])
@properties
@given(data=st.data())
def test_sums_equal_the_reference_by_hand(name, interchangeable, data):
    """Random truths in and beyond the image, any visibility, padding, any cheaper order."""
    batch = make_batch(data.draw(st.integers(0, 99)))
    shape = batch["visibility"].shape
    states = st.sampled_from([UNKNOWN, ABSENT, LABELLED, LABELLED])
    batch["visibility"] = np.array(
        data.draw(st.lists(states, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    ).reshape(shape)
    batch["_mask"] = np.array(data.draw(st.tuples(*[st.sampled_from([0.0, 1.0])] * BATCH)))
    batch["keypoints"][0, 1] = data.draw(st.tuples(st.floats(-9, 60), st.floats(-9, 45)))
    # Near the truth in some order, so that both orders are the cheaper one at times.
    shuffled = batch["keypoints"][:, np.random.default_rng(0).permutation(POINTS.count)]
    prediction = perfect(name, shuffled) + random_prediction(name, 2, scale=0.2)
    pairs = POINTS.interchangeable_pairs if interchangeable else ()
    total, weight = compute(name, prediction, batch, **{"loss.interchangeable": interchangeable})
    expected_total, expected_weight = sums_by_hand(name, prediction, batch, pairs)
    assert float(weight) == expected_weight
    assert float(total) == pytest.approx(expected_total, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradient_is_finite(name, scale):
    batch = make_batch()
    batch["visibility"][0] = (UNKNOWN, ABSENT, LABELLED, ABSENT, UNKNOWN)
    prediction = random_prediction(name, scale=scale)
    for swaps in (False, True):
        assert np.isfinite(
            gradient(name, prediction, batch, **{"loss.interchangeable": swaps})
        ).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("how", ["all unknown", "all padding"])
def test_a_batch_without_labels_costs_zero_with_zero_gradient(name, swaps, how):
    batch = make_batch()
    if how == "all padding":
        batch["_mask"][:] = 0
    else:
        batch["visibility"][:] = UNKNOWN
    prediction = random_prediction(name)
    total, weight = compute(name, prediction, batch, **{"loss.interchangeable": swaps})
    assert float(total) == float(weight) == float(losses.mean(total, weight)) == 0.0
    assert not gradient(name, prediction, batch, **{"loss.interchangeable": swaps}).any()


def same_sums_and_gradient(name, prediction, batch, other_prediction, other_batch, **overrides):
    one = compute(name, prediction, batch, **overrides)
    other = compute(name, other_prediction, other_batch, **overrides)
    assert [float(v) for v in one] == [float(v) for v in other]
    grads = [
        gradient(name, p, b, **overrides)
        for p, b in ((prediction, batch), (other_prediction, other_batch))
    ]
    np.testing.assert_array_equal(*grads)
    return grads[0]


@pytest.mark.parametrize("name", NAMES)
def test_unknown_points_have_no_influence(name):
    batch, other = make_batch(), make_batch()
    hidden = [(0, 1), (1, 0), (1, 2), (2, 4)]
    prediction = random_prediction(name)
    wild = prediction.copy()
    for b, k in hidden:
        batch["visibility"][b, k] = other["visibility"][b, k] = UNKNOWN
        wild[of_one(wild, b, k)] = 1e4 * (k + 1)
        other["keypoints"][b, k] = (-3e3, 1e4)
    grad = same_sums_and_gradient(name, prediction, batch, wild, other)
    for b, k in hidden:
        assert not grad[of_one(grad, b, k)].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("swaps", [False, True])
def test_padding_rows_have_no_influence(name, swaps):
    batch, other = make_batch(), make_batch()
    prediction = random_prediction(name)
    wild = prediction.copy()
    batch["_mask"][1] = other["_mask"][1] = 0
    wild[1] *= -1e4
    other["keypoints"][1] = 5e3
    other["visibility"][1] = ABSENT
    grad = same_sums_and_gradient(
        name, prediction, batch, wild, other, **{"loss.interchangeable": swaps}
    )
    assert not grad[1].any()
    assert grad[[0, 2]].any()


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_batches_add_up_to_the_loss_of_the_split(name):
    batch = make_batch()
    batch["visibility"][0, :4] = UNKNOWN
    prediction = random_prediction(name)
    parts = [
        compute(name, prediction[i : i + 1], {k: v[i : i + 1] for k, v in batch.items()})
        for i in range(BATCH)
    ]
    whole = compute(name, prediction, batch)
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-5)


# --- interchangeable pairs ---

SWAPS = {"loss.interchangeable": True}


@pytest.mark.parametrize("name", NAMES)
def test_either_order_of_a_pair_costs_nothing_pair_by_pair_and_example_by_example(name):
    batch = make_batch()
    shown = batch["keypoints"].copy()
    shown[0] = shown[0][[2, 1, 0, 3, 4]]  # the first pair swapped
    shown[1] = shown[1][[0, 1, 2, 4, 3]]  # the second
    shown[2] = shown[2][[2, 1, 0, 4, 3]]  # both
    prediction = perfect(name, shown)
    assert value(name, prediction, batch, **SWAPS) == pytest.approx(0.0, abs=1e-6)
    assert value(name, prediction, batch) > 1e-3  # the order counts unless the config says so


@pytest.mark.parametrize("name", NAMES)
def test_points_outside_a_pair_keep_their_order(name):
    batch = make_batch()
    prediction = perfect(name, batch["keypoints"][:, [1, 0, 2, 3, 4]])
    assert value(name, prediction, batch, **SWAPS) > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("found_by", [0, 2])
def test_weights_travel_with_the_truth_in_a_pair_with_one_label(name, found_by):
    """One end is labelled and either output finds it: that output is right, the other free."""
    batch = make_batch()
    batch["visibility"][:] = UNKNOWN
    batch["visibility"][:, 0] = LABELLED
    prediction = random_prediction(name, scale=3.0)
    found = point(prediction, found_by)
    prediction[found] = perfect(name, batch["keypoints"])[point(prediction, 0)]
    total, weight = compute(name, prediction, batch, **SWAPS)
    assert float(weight) == BATCH
    assert float(total) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_masked_pair_contributes_exactly_zero(name):
    batch = make_batch()
    batch["visibility"][:, [0, 2]] = UNKNOWN
    prediction = random_prediction(name)
    wild = prediction.copy()
    for k in (0, 2):
        wild[point(wild, k)] *= -1e3
    grad = same_sums_and_gradient(name, prediction, batch, wild, batch, **SWAPS)
    for k in (0, 2):
        assert not grad[point(grad, k)].any()
    _, weight = compute(name, prediction, batch, **SWAPS)
    assert float(weight) == BATCH * (POINTS.count - 2)


def test_without_pairs_in_the_data_the_switch_changes_nothing():
    batch, plain = make_batch(), KeypointSet(POINTS.names)
    prediction = random_prediction("mse")
    on, off = (compute("mse", prediction, batch, plain, **s) for s in (SWAPS, {}))
    assert [float(v) for v in on] == [float(v) for v in off]


# --- what is missing, and what lies outside ---


@pytest.mark.parametrize("name", NAMES)
def test_absent_points_are_taught_only_where_a_map_can_say_nowhere(name):
    batch = make_batch(visibility=ABSENT)
    prediction = random_prediction(name)
    total, weight = compute(name, prediction, batch)
    if losses.LOSSES[name].sees_absence:
        assert float(weight) == BATCH * POINTS.count
        by_point = np.mean(prediction.astype(np.float64) ** 2, axis=(1, 2))  # from an empty map
        assert float(total) == pytest.approx(by_point.sum(), rel=1e-5)
        assert value(name, np.zeros_like(prediction), batch) == 0.0
    else:
        assert float(total) == float(weight) == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("position", "on_image"),
    [((-0.5, 31.5), 1), ((47.5, -0.5), 1), ((-0.6, 9), 0), ((9, 31.6), 0), ((1e4, -1e4), 0)],
)
def test_labelled_points_outside_the_image_have_weight_only_under_mse(name, position, on_image):
    batch = make_batch()
    batch["keypoints"][1, 3] = position
    total, weight = compute(name, random_prediction(name), batch)
    counts = on_image or losses.LOSSES[name].sees_absence
    assert float(weight) == BATCH * POINTS.count - (0 if counts else 1)
    assert np.isfinite(float(total))


OUTSIDE = (1000.0, 3.0)
LINES = KeypointSet(
    ("a", "b", "c", "d", "e"), interchangeable_pairs=((0, 1),), measurements=(("side", 2, 3),)
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("outside", "missing", "any_masked", "all_masked"),
    [
        ([], [], [], []),
        ([0], [], [0, 1], []),  # of an interchangeable pair
        ([0, 1], [], [0, 1], [0, 1]),
        ([3], [], [2, 3], []),  # of a measurement
        ([2, 3], [], [2, 3], [2, 3]),
        ([1, 2], [], [0, 1, 2, 3], []),
        ([4], [], [4], [4]),  # of no line
        ([0], [1], [0, 1], [0, 1]),  # the only labelled end
        ([], [2], [], []),  # what is not labelled lies nowhere
        ([0], [0], [], []),
    ],
)
def test_policies_for_points_out_of_bounds(name, outside, missing, any_masked, all_masked):
    keypoints = np.full((1, 5, 2), 10.0, np.float32)
    keypoints[0, outside] = OUTSIDE
    visibility = np.full((1, 5), LABELLED)
    visibility[0, missing] = UNKNOWN
    loss = losses.LOSSES[name]
    for policy, masked in (
        ("supervise_oob", []),
        ("mask_any_oob", any_masked),
        ("mask_all_oob", all_masked),
    ):
        config = config_for(name, **{"loss.oob_policy": policy})
        weights = objective.point_weights(config, loss, LINES, keypoints, visibility)
        expected = np.ones(5)
        expected[[*missing, *masked]] = 0
        if not loss.sees_absence:  # they cannot say "nowhere", whatever the policy
            expected[outside] = 0
        np.testing.assert_array_equal(weights, expected[None])


def test_a_policy_changes_the_loss_of_a_batch():
    batch = make_batch()
    batch["keypoints"][1, 0] = OUTSIDE
    prediction = random_prediction("mse")
    counted = [
        float(compute("mse", prediction, batch, **{"loss.oob_policy": policy})[1])
        for policy in ("supervise_oob", "mask_all_oob", "mask_any_oob")
    ]
    assert counted == [BATCH * POINTS.count, BATCH * POINTS.count, BATCH * POINTS.count - 2]


def test_share_of_points_out_of_bounds():
    batch = make_batch()
    batch["keypoints"][0, :2] = OUTSIDE
    batch["keypoints"][1, 4] = OUTSIDE
    batch["visibility"][1, 3:] = UNKNOWN, UNKNOWN
    batch["keypoints"][2] = OUTSIDE
    batch["_mask"][2] = 0  # padding
    config = config_for("mse")
    assert float(objective.out_of_bounds_share(config, batch)) == pytest.approx(2 / 8)
    batch["visibility"][:] = UNKNOWN
    assert float(objective.out_of_bounds_share(config, batch)) == 0.0


@pytest.mark.parametrize("name", MAP_NAMES)
@pytest.mark.parametrize("swaps", [False, True])
def test_maps_rendered_on_host_or_device_give_the_same_loss(name, swaps):
    batch = make_batch()
    batch["visibility"][0] = (ABSENT, LABELLED, UNKNOWN, LABELLED, ABSENT)
    maps = targets.gaussian(np, batch["keypoints"], SIZE, MAPS, SIGMA)
    labelled = (batch["visibility"] == LABELLED)[:, None, None]
    prediction = random_prediction(name)
    device = compute(name, prediction, batch, **{"loss.interchangeable": swaps})
    host = compute(
        name, prediction, {**batch, "heatmaps": maps * labelled}, **{"loss.interchangeable": swaps}
    )
    np.testing.assert_allclose(host, device, rtol=1e-6)


# --- cross-entropy ---


def one_map(hx, hy, sigma, size=64):
    """A log-Gaussian and its Gaussian, [1, size, size, 1]."""
    rows, columns = np.mgrid[:size, :size]
    log = -((columns - hx) ** 2 + (rows - hy) ** 2) / (2 * sigma**2)
    return log[None, ..., None].astype(np.float32), np.exp(log)[None, ..., None].astype(np.float32)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("where", [(31.3, 20.8), (0.0, 0.0), (63.4, 30.0)])
def test_cross_entropy_is_the_excess_over_the_entropy_of_the_actual_target(sigma, where):
    log, target = one_map(*where, sigma)
    excess = float(losses.spatial_cross_entropy(jnp.asarray(log + 7.0), target)[0, 0])
    assert excess == pytest.approx(0.0, abs=1e-5)

    p = target.astype(np.float64) / target.astype(np.float64).sum()
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    flat = float(losses.spatial_cross_entropy(jnp.zeros_like(log), target)[0, 0])
    assert flat == pytest.approx(np.log(64 * 64) - entropy, abs=1e-4)
    if where == (31.3, 20.8):  # in the interior the entropy is the continuous Gaussian's
        assert entropy == pytest.approx(1 + np.log(2 * np.pi) + 2 * np.log(sigma), abs=1e-3)


def test_cross_entropy_ignores_a_constant_and_the_height_of_the_target():
    maps, (_, target) = random_prediction("cross_entropy"), one_map(7.2, 5.1, 1.5, size=12)
    maps = maps[:1, :, :12, :1]
    base = losses.spatial_cross_entropy(jnp.asarray(maps), target)
    np.testing.assert_allclose(losses.spatial_cross_entropy(maps + 50.0, target), base, rtol=1e-4)
    np.testing.assert_allclose(losses.spatial_cross_entropy(maps, 5 * target), base, rtol=1e-4)


# --- fitting the model ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["heatmaps", "coordinates"])
def test_check_refuses_a_loss_that_cannot_score_the_output(name, output):
    config = config_for(name)
    if (losses.LOSSES[name].trains == "coordinates") == (output == "coordinates"):
        losses.check(config, output)
        return
    with pytest.raises(UserError) as caught:
        losses.check(config, output)
    message = str(caught.value)
    assert "model.name=" in message
    assert f"loss.name='{name}'" in message
    suggested = message.split("choose ")[1]
    for other in NAMES:
        fits = (losses.LOSSES[other].trains == "coordinates") == (output == "coordinates")
        assert (other in suggested.rstrip(".").split(" or ")) == fits


def test_an_unknown_loss_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="'cross_entropy'"):
        losses.check(config_for("crossentropy"), "heatmaps")

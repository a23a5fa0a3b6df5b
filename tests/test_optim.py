"""Schedules at their corners, one step of each optimiser by hand, decay and freezing by path."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from heatmap import optim, run
from heatmap import state as state_lib
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.step import make_train_step
from tests.helpers import make_config

RATE = 0.1


def settings(**fields):
    fields = {"learning_rate": RATE, **fields}
    return make_config(**{f"optim.{name}": value for name, value in fields.items()}).optim


def rates(steps, **fields):
    """The learning rate of every step of a run, [steps]."""
    schedule = optim.create(settings(**fields), steps)[1]
    return np.array([float(schedule(step)) for step in range(steps)])


def tree():
    """Parameters with the names that real ones have, some of which look alike."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "bias": (2,), "scale": (2,)}
    layer = lambda: {k: jnp.array(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}  # noqa: E731
    return {"encoder": {"convs": {0: layer(), 1: layer()}}, "kernel_norm": layer()}


def flat(params):
    return {
        optim.path_name(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(params)
    }


def stepped(params, gradients, **fields):
    """Parameters after one step for each of the gradients."""
    optimiser, _ = optim.create(settings(**fields), 100)
    memory = optimiser.init(params)
    for gradient in gradients:
        updates, memory = optimiser.update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
    return flat(params)


# --- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_every_schedule_begins_at_the_peak_and_never_exceeds_it(name):
    found = rates(50, schedule=name)
    assert found[0] == pytest.approx(RATE)
    assert found.min() >= 0
    assert found.max() <= RATE * (1 + 1e-6)
    assert np.all(np.diff(found) <= 1e-9)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_warm_up_is_linear_and_does_not_waste_its_first_step(name):
    found = rates(50, schedule=name, warmup_steps=5)
    np.testing.assert_allclose(found[:5], RATE * np.arange(1, 6) / 5, rtol=1e-5)
    np.testing.assert_allclose(found[5:], rates(45, schedule=name), rtol=1e-5)


def test_warm_up_of_one_step_and_one_longer_than_the_run():
    np.testing.assert_allclose(rates(10, warmup_steps=1), RATE, rtol=1e-6)
    np.testing.assert_allclose(rates(4, warmup_steps=8), RATE * np.arange(1, 5) / 8, rtol=1e-5)


def test_constant_stays():
    np.testing.assert_allclose(rates(20), RATE, rtol=1e-6)


def test_cosine_halves_in_the_middle_and_ends_near_zero():
    found = rates(100, schedule="cosine")
    assert found[50] == pytest.approx(RATE / 2, rel=1e-5)
    assert 0 < found[-1] < 0.001 * RATE


@pytest.mark.parametrize(("fraction", "stable"), [(0.2, 80), (1.0, 0), (0.0, 99)])
def test_wsd_is_flat_and_then_falls_to_the_last_step(fraction, stable):
    found = rates(100, schedule="wsd", decay_fraction=fraction)
    np.testing.assert_allclose(found[: stable + 1], RATE, rtol=1e-6)
    falling = RATE * (100 - np.arange(stable, 100)) / (100 - stable)  # would be zero at step 100
    np.testing.assert_allclose(found[stable:], falling, rtol=1e-4)


@pytest.mark.parametrize(
    ("steps", "shares", "expected"),
    [
        (100, (0.6, 0.85), {0: 1, 59: 1, 60: 0.1, 84: 0.1, 85: 0.01, 99: 0.01}),
        (10, (0.5,), {4: 1, 5: 0.1, 9: 0.1}),
        (10, (), {0: 1, 9: 1}),
        (4, (0.6, 0.61), {1: 1, 2: 0.01}),  # both fall on one step: both count
    ],
)
def test_step_drops_at_its_boundaries(steps, shares, expected):
    found = rates(steps, schedule="step", step_boundaries=shares)
    for step, factor in expected.items():
        assert found[step] == pytest.approx(RATE * factor, rel=1e-5), step


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"name": "adan"}, r"optim\.name='adan' is not known: did you mean 'adam'"),
        ({"schedule": "cosin"}, r"optim\.schedule='cosin' is not known: did you mean 'cosine'"),
    ],
)
def test_unknown_names_are_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        optim.create(settings(**fields), 10)


# --- optimisers ---------------------------------------------------------------------------------


def gradients_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.array(rng.normal(size=a.shape), jnp.float32), params)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_by_hand(momentum):
    params = tree()
    gradients = [gradients_like(params, seed) for seed in (1, 2)]
    found = stepped(params, gradients, name="sgd", momentum=momentum)
    first, second = map(flat, gradients)
    for name, before in flat(params).items():
        velocity = momentum * first[name] + second[name]
        expected = before - RATE * first[name] - RATE * velocity
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def adam_by_hand(before, gradients):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        before = before - RATE * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return before


@pytest.mark.parametrize("name", ["adam", "adamw"])  # adamw's default decay is zero
def test_adam_by_hand(name):
    params = tree()
    gradients = [gradients_like(params, seed) for seed in (1, 2)]
    found = stepped(params, gradients, name=name)
    for leaf, before in flat(params).items():
        expected = adam_by_hand(before, [flat(g)[leaf] for g in gradients])
        np.testing.assert_allclose(found[leaf], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((r"kernel$",), {"encoder/convs/0/kernel", "encoder/convs/1/kernel", "kernel_norm/kernel"}),
        ((r"convs/1/",), {f"encoder/convs/1/{leaf}" for leaf in ("kernel", "bias", "scale")}),
        ((r"^kernel_norm/bias", r"0/scale"), {"kernel_norm/bias", "encoder/convs/0/scale"}),
        ((), set()),
    ],
)
def test_weight_decay_moves_only_the_paths_that_match(patterns, expected):
    params = tree()
    gradient = [gradients_like(params, 1)]
    fields = {"name": "adamw", "decay_paths": patterns}
    without, decayed = (stepped(params, gradient, **fields, weight_decay=w) for w in (0.0, 0.5))
    before = flat(params)
    changed = {name for name in before if np.any(without[name] != decayed[name])}
    assert changed == expected
    for name in expected:  # decoupled: the rate times the decay, whatever the gradient
        shrunk = without[name] - RATE * 0.5 * before[name]
        np.testing.assert_allclose(decayed[name], shrunk, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_global_norm_and_leaves_small_gradients():
    params = tree()
    large = gradients_like(params, 1)
    norm = float(optax.global_norm(large))
    plain, clipped = (stepped(params, [large], name="sgd", clip_norm=c) for c in (0.0, norm / 4))
    for name, before in flat(params).items():
        np.testing.assert_allclose(
            clipped[name] - before, (plain[name] - before) / 4, rtol=1e-4, atol=1e-6
        )
    same = stepped(params, [large], name="sgd", clip_norm=2 * norm)
    for name, value in plain.items():
        np.testing.assert_array_equal(same[name], value)


# --- freezing -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen_run():
    """A regression net with its encoder frozen, before and after two steps of AdamW."""
    config = make_config(
        **{
            "model.name": "regression",
            "loss.name": "coordinate_mse",
            "data.image_size": (16, 16),
            "optim.name": "adamw",
            "optim.weight_decay": 0.1,
            "optim.ema_decay": 0.9,
            "optim.freeze_paths": (r"^encoder/",),
        }
    )
    built = run.build(config, KeypointSet(("head", "tail")))
    optimiser, _ = optim.create(config.optim, 2)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (4, 16, 16, 1), dtype=np.uint8),
        "keypoints": rng.uniform(0, 15, (4, 2, 2)).astype(np.float32),
        "visibility": np.full((4, 2), 2, np.int32),
        "_mask": np.ones(4, np.float32),
    }
    with jax.set_mesh(built.mesh):
        state = state_lib.new_state(built.weights, optimiser, ema=True)
        before = jax.tree.map(np.array, dataclasses.asdict(state))
        step = make_train_step(built, optimiser)
        for _ in range(2):
            state, _ = step(state, batch, {})
    return built, before, state


def test_frozen_parameters_stay_and_the_others_learn(frozen_run):
    _, before, after = frozen_run
    assert all(name.startswith("encoder/") for name in flat(before["frozen"]))
    assert not any(name.startswith("encoder/") for name in flat(before["params"]))
    for name, value in flat(after.frozen).items():
        np.testing.assert_array_equal(value, flat(before["frozen"])[name])
    for name, value in flat(after.params).items():
        assert np.any(value != flat(before["params"])[name]), name


def test_frozen_parameters_take_no_memory_in_optimiser_or_average(frozen_run):
    built, _, after = frozen_run
    trainable = sum(a.size for a in jax.tree.leaves(built.weights["params"]))
    assert sum(a.size for a in jax.tree.leaves(after.opt_state) if a.ndim) == 2 * trainable
    assert jax.tree.structure(after.ema) == jax.tree.structure(after.params)


@pytest.mark.parametrize("patterns", [(r"^backbone/",), (r"^encoder/", r"kernels$")])
def test_a_pattern_that_freezes_nothing_is_refused(patterns):
    config = make_config(**{"optim.freeze_paths": patterns})
    with pytest.raises(
        UserError, match=rf"freeze_paths: '{re.escape(patterns[-1])}' matches no parameter"
    ):
        run.build(config, KeypointSet(("a",)))

"""The state's parts, hash and average, and one step on eight devices against one device.

The eight devices are virtual (XLA divides the CPU), and must be asked for before JAX starts, so
that comparison runs in a process of its own: this file, run as a script.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

from heatmap import models, optim, run, targets
from heatmap import state as state_lib
from heatmap.keypoints import KeypointSet
from heatmap.losses import LOSSES
from heatmap.models import MODELS, ops
from heatmap.train import make_train_step
from input_pipeline import batching
from tests.helpers import make_config

POINTS = KeypointSet(
    ("head", "left", "right"), flip_pairs=((1, 2),), interchangeable_pairs=((1, 2),)
)
RUNS = {
    "unet": {"model.name": "unet"},
    "unet_pairs": {"model.name": "unet", "loss.interchangeable": True},
    "regression": {
        "model.name": "regression",
        "loss.name": "coordinate_mse",
        "loss.interchangeable": True,
        "model.dropout": 0.5,
    },
}


def small_config(**overrides):
    size = {"data.image_size": (32, 32), "targets.heatmap_size": (16, 16), "train.batch_size": 16}
    return make_config(**{**size, **overrides})


def make_batch(config, seed):
    """Pictures of a blob at each point; some labels are missing, one device's altogether."""
    rng = np.random.default_rng(seed)
    n, size = config.train.batch_size, config.data.image_size
    keypoints = rng.uniform(2, size[0] - 3, (n, POINTS.count, 2)).astype(np.float32)
    brightness = np.array([1.0, 0.6, 0.6])  # the pair cannot be told apart
    image = (targets.gaussian(np, keypoints, size, size, 2.0) * brightness).max(-1, keepdims=True)
    visibility = rng.choice([0, 1, 2], (n, POINTS.count), p=[0.2, 0.1, 0.7])
    visibility[:2] = 0
    return {
        "image": np.round(200 * image + rng.uniform(0, 30, image.shape)).astype(np.uint8),
        "keypoints": keypoints,
        "visibility": visibility.astype(np.int32),
        "_mask": np.ones(n, np.float32),
        "row": np.arange(n),
    }


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [(), (r"^encoder/convs/[01]/",), (r".",)])
def test_split_and_merge_give_the_same_output(freeze):
    """The parts of a split model, put together, are the model, whatever is frozen."""
    config = small_config(**{"model.name": "regression"})
    model = models.create(config, 2, nnx.Rngs(3))
    images = jnp.array(np.random.default_rng(0).uniform(size=(2, 32, 32, 1)), jnp.float32)
    whole = nnx.with_attributes(model, deterministic=True, use_running_average=True)(images)
    network, weights = state_lib.split_model(model, freeze)
    np.testing.assert_array_equal(network.predict(weights, images), whole)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_exactly_one_part(name):
    model = nnx.eval_shape(
        lambda: models.create(small_config(**{"model.name": name}), 2, nnx.Rngs(0))
    )
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))  # noqa: E731
    _, weights = state_lib.split_model(model, (r"kernel$",))
    names = {part: [optim.path_name(p) for p, _ in leaves(weights[part])] for part in weights}
    assert all(n.endswith("kernel") for n in names["frozen"])
    assert not any(n.endswith("kernel") for n in names["params"])
    assert all(n.endswith(("mean", "var")) for n in names["stats"])
    total = count(nnx.state(model, nnx.Param))
    assert count(weights["params"]) + count(weights["frozen"]) == total


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def tiny_state(ema=True):
    weights = {
        "params": {"convs": {0: {"kernel": jnp.arange(6.0).reshape(2, 3)}}},
        "frozen": {"head": {"bias": jnp.ones(2)}},
        "stats": {"norm": {"mean": jnp.zeros(3)}},
    }
    return state_lib.new_state(weights, optax.adam(1e-3), ema)


def test_hash_follows_every_bit_of_every_part_and_nothing_else():
    state = tiny_state()
    first = state_lib.sha256(state)
    assert first == state_lib.sha256(tiny_state())
    counted = ("params", "frozen", "stats", "opt_state", "ema")
    for name in counted:
        part = getattr(state, name)
        structure = jax.tree.structure(part)
        for i in range(structure.num_leaves):
            arrays = [np.array(a) for a in jax.tree.leaves(part)]
            arrays[i].reshape(-1).view(np.uint8)[-1] ^= 1
            changed = dataclasses.replace(state, **{name: structure.unflatten(arrays)})
            assert state_lib.sha256(changed) != first, (name, i)
    bookkeeping = dataclasses.replace(state, step=state.step + 1, loss_sum=jnp.ones(()))
    assert state_lib.sha256(bookkeeping) == first
    assert state_lib.sha256(jax.tree.map(np.asarray, state)) == first  # wherever they live


def test_hash_minds_names_shapes_and_types():
    array = np.zeros(4, np.float32)
    trees = [
        {"a": array},
        {"b": array},
        {"a": array.reshape(2, 2)},
        {"a": array.astype(np.int32)},
        {"a": array[:2], "b": array[:2]},
    ]
    assert len({state_lib.tree_sha256(tree) for tree in trees}) == len(trees)


def test_weights_are_the_average_where_there_is_one():
    state = tiny_state(ema=False)
    assert state.ema == {}
    assert state.weights["params"] is state.params
    state = dataclasses.replace(tiny_state(), ema={"other": jnp.ones(1)})
    assert state.weights == {"params": state.ema, "frozen": state.frozen, "stats": state.stats}


def test_mesh_divides_batches_and_repeats_the_state():
    mesh = state_lib.create_mesh()
    assert mesh.axis_names == ("data",)
    assert mesh.size == jax.device_count()
    assert state_lib.replicated(mesh).is_fully_replicated
    assert state_lib.sharded(mesh).spec == jax.sharding.PartitionSpec("data")


# --- the step -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged():
    """Three steps of a run with an EMA of 0.8: all states, and the losses."""
    config = small_config(**RUNS["regression"], **{"optim.ema_decay": 0.8, "seed": 7})
    built = run.build(config, POINTS)
    optimiser, _ = optim.create(config.optim, 3)
    step = make_train_step(built, optimiser)
    with jax.set_mesh(built.mesh):
        state = state_lib.new_state(built.weights, optimiser, ema=True)
        states, losses = [jax.tree.map(np.array, state)], []
        for seed in range(3):
            batch = batching.to_devices(make_batch(config, seed), state_lib.sharded(built.mesh))
            state, loss = step(state, batch)
            states.append(jax.tree.map(np.array, state))
            losses.append(float(loss))
    return states, losses


def test_average_follows_its_formula(averaged):
    states, _ = averaged
    expected = states[0].params
    for state in states[1:]:
        expected = jax.tree.map(lambda e, p: 0.8 * e + 0.2 * p, expected, state.params)
        for (path, mine), by_hand in zip(leaves(state.ema), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(mine, by_hand, rtol=1e-5, atol=1e-8, err_msg=str(path))
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (expected, states[-1].params))))


def test_step_counts_and_sums_the_losses(averaged):
    states, losses = averaged
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    weights = np.diff([float(s.loss_weight) for s in states])
    assert all(weights == np.round(weights))
    assert float(states[-1].loss_sum) == pytest.approx(np.dot(losses, weights), rel=1e-5)


# --- eight devices against one ------------------------------------------------------------------

STEPS = 20


def switchable(first, second):
    """An optimiser whose state says which of two it is: one compilation serves both."""

    def init(params):
        return {
            "use_second": jnp.zeros((), bool),
            "memories": (first.init(params), second.init(params)),
        }

    def update(gradients, memory, params):
        pairs = zip((first, second), memory["memories"], strict=True)
        updates, memories = zip(*(o.update(gradients, m, params) for o, m in pairs), strict=True)
        chosen = jax.tree.map(lambda a, b: jnp.where(memory["use_second"], b, a), *updates)
        return chosen, {**memory, "memories": memories}

    return optax.GradientTransformation(init, update)


def train_on(built, mesh, step, optimiser, use_second):
    """Losses of STEPS steps and the parameters after them."""
    built = dataclasses.replace(built, mesh=mesh)
    everywhere, divided = state_lib.replicated(mesh), state_lib.sharded(mesh)
    with jax.set_mesh(mesh):
        state = state_lib.new_state(jax.tree.map(np.array, built.weights), optimiser, ema=False)
        state.opt_state["use_second"] = jnp.array(use_second)
        state = jax.device_put(jax.tree.map(np.array, state), everywhere)
        losses = []
        for seed in range(STEPS):
            batch = batching.to_devices(make_batch(built.config, seed), divided)
            state, loss = step(state, batch)
            losses.append(float(loss))
    return losses, jax.tree.map(np.array, state.params)


def compare_devices():
    """Trains each of RUNS on eight devices and on one, and prints the differences as JSON."""
    report = {"devices": jax.device_count(), "operators": compare_operators()}
    eight, one = state_lib.create_mesh(), one_device()
    for name, overrides in RUNS.items():
        config = small_config(**overrides)
        built = run.build(config, POINTS)
        optimiser = switchable(optax.adam(1e-3), optax.sgd(0.1))
        found = {}
        for mesh in (eight, one):
            step = make_train_step(dataclasses.replace(built, mesh=mesh), optimiser)
            for rule in ("adam", "sgd"):
                if rule == "sgd" and name == "unet_pairs":
                    continue
                found[rule, mesh.size] = train_on(built, mesh, step, optimiser, rule == "sgd")
        report[name] = {
            rule: compare(found[rule, 8], found[rule, 1], built.weights["params"])
            for rule in sorted({rule for rule, _ in found})
        }
    print(json.dumps(report))


def one_device():
    return jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])


def compare(eight, one, start):
    """Differences of losses (relative) and parameters, and how far these moved at all."""
    losses = np.array([eight[0], one[0]])
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one[1], start)))]
    apart = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (eight[1], one[1])))]
    return {
        "loss": float(np.max(np.abs(losses[0] - losses[1]) / losses[1])),
        "first_and_last": [losses[1, 0], losses[1, -1]],
        "parameters": float(max(apart)),
        "moved": float(max(moved)),
    }


def compare_operators():
    """Kernel gradients with a batch divided over eight devices, evenly (16) and not (12)."""
    mesh = state_lib.create_mesh()
    result = {}
    for batch in (16, 12):
        rng = np.random.default_rng(batch)
        x, g = (jnp.array(rng.normal(size=(batch, 6, 6, 3)), jnp.float32) for _ in range(2))
        kernel = jnp.ones((3, 3, 3, 3))
        gradient = lambda f, x, g: jax.vjp(f, x, kernel)[1](g)[1]  # noqa: E731, B023
        with jax.set_mesh(mesh):
            if batch % 8 == 0:
                x, g = jax.device_put((x, g), state_lib.sharded(mesh))
            mine = jax.jit(gradient, static_argnums=0)(ops.conv_3x3, x, g)
            plain = jax.jit(gradient, static_argnums=0)(ops.plain_conv, x, g)
        result[batch] = float(np.abs(mine - plain).max() / np.abs(plain).max())
    return result


@pytest.fixture(scope="module")
def devices():
    """What `compare_devices` reports from a process with eight virtual devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.test_state"],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
        env=environment,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["devices"] == 8
    return report


@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("name", RUNS)
def test_losses_do_not_depend_on_the_number_of_devices(devices, name, rule):
    if rule not in devices[name]:
        pytest.skip("compared under Adam only")
    assert devices[name][rule]["loss"] < 1e-5


@pytest.mark.parametrize("name", ["unet", "regression"])
def test_parameters_under_sgd_do_not_depend_on_the_number_of_devices(devices, name):
    """Not under Adam: it turns the rounding noise of biases before a batch norm into steps."""
    found = devices[name]["sgd"]
    assert found["parameters"] < 1e-5
    assert found["moved"] > 1e-3  # the comparison is of parameters that learned


def test_operators_divide_a_batch_or_leave_it_whole(devices):
    assert max(devices["operators"].values()) < 1e-5


def test_runs_compared_cover_every_kind_of_output():
    assert {LOSSES[small_config(**r).loss.name].trains for r in RUNS.values()} >= {
        "peak",
        "coordinates",
    }


if __name__ == "__main__":
    compare_devices()

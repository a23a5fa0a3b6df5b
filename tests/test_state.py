"""The state's parts, hash and average, and one step on eight devices against one device.

The eight devices are virtual (XLA divides the CPU), and must be asked for before JAX starts, so
that comparison runs in a process of its own: this file, run as a script.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from heatmap import models, optim, run, targets
from heatmap import state as state_lib
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.models import MODELS, ops, stem
from heatmap.models.rngs import Rngs
from heatmap.step import make_train_step
from input_pipeline import batching
from tests.helpers import MODEL_SETTINGS, make_config, quick_jit

POINTS = KeypointSet(
    ("head", "left", "right"), flip_pairs=((1, 2),), interchangeable_pairs=((1, 2),)
)
RUNS = {
    "unet": {"model.name": "unet", "loss.interchangeable": True},
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
    image = np.repeat(image, config.data.channels, axis=-1)
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


@pytest.mark.parametrize("freeze", [(r"^encoder/convs/[01]/",), (r".",)])
def test_split_and_merge_give_the_same_output(freeze):
    """The parts of a split model, put together, are the model, whatever is frozen."""
    config = small_config(**{"model.name": "regression"})
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 1)).astype(np.float32)

    @quick_jit
    def both_ways(images):
        model = models.create(config, 2, Rngs(3))
        whole = nnx.with_attributes(model, deterministic=True, use_running_average=True)(images)
        network, weights = state_lib.split_model(model, freeze)
        return whole, network.predict(weights, images)

    np.testing.assert_array_equal(*both_ways(images))


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_exactly_one_part(name):
    model = nnx.eval_shape(
        lambda: models.create(
            small_config(**MODEL_SETTINGS[name], **{"model.name": name}), 2, Rngs(0)
        )
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
    assert mesh.axis_names == ("data", "model")
    assert mesh.shape["model"] == 1
    assert mesh.size == jax.device_count()
    assert state_lib.replicated(mesh).is_fully_replicated
    assert state_lib.sharded(mesh).spec == jax.sharding.PartitionSpec(("data", "model"))


# --- the step -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def averaged():
    """Three steps of a run with an EMA of 0.8: all states, and the losses."""
    config = small_config(
        **RUNS["regression"], **{"optim.ema_decay": 0.8, "data.image_size": (16, 16)}
    )
    built = run.build(config, POINTS)
    optimiser, _ = optim.create(config.optim, 3)
    step = make_train_step(built, optimiser)
    with jax.set_mesh(built.mesh):
        state = state_lib.new_state(built.weights, optimiser, ema=True)
        states, losses = [jax.tree.map(np.array, state)], []
        for seed in range(3):
            batch = batching.to_devices(make_batch(config, seed), state_lib.sharded(built.mesh))
            state, told = step(state, batch, {})
            states.append(jax.tree.map(np.array, state))
            losses.append(float(told.loss))
    return states, losses


def test_average_follows_its_formula(averaged):
    states, _ = averaged
    expected = states[0].params
    for state in states[1:]:
        expected = jax.tree.map(lambda e, p: 0.8 * e + 0.2 * p, expected, state.params)
        for (path, mine), by_hand in zip(leaves(state.ema), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(mine, by_hand, rtol=1e-5, atol=1e-8, err_msg=str(path))
    assert state_lib.tree_sha256(expected) != state_lib.tree_sha256(states[-1].params)


def test_step_counts_and_sums_the_losses(averaged):
    states, losses = averaged
    assert [int(s.step) for s in states] == [0, 1, 2, 3]
    weights = np.diff([float(s.loss_weight) for s in states])
    assert all(weights == np.round(weights))
    assert float(states[-1].loss_sum) == pytest.approx(np.dot(losses, weights), rel=1e-5)


# --- eight devices against one ------------------------------------------------------------------
#
# Sums in another order differ in the last bits. Left alone, two trainings drift apart from there:
# a pixel at the corner of a ReLU or of a max-pool falls on the other side, and Adam turns the
# rounding noise of biases before a batch norm into whole steps. So float32 is compared from the
# same state at each step, at the usual rate, and running freely at a small one; and float64, whose
# noise is too small for all that, running freely at the usual rates, and gradient by gradient: how
# much float32's sums over the first layer's pixels differ depends on the CPU's vectors.

STEPS, LOCKSTEPS = 20, 4
ADAM, SGD = (1e-3, 0.0), (0.0, 0.1)  # rates of Adam and of SGD
SMALL_ADAM, SMALL_SGD = (3e-6, 0.0), (0.0, 3e-3)
# Quicker, and with fewer units that could be at a corner.
SMALLER = {"data.image_size": (16, 16), "targets.heatmap_size": (8, 8)}


def adam_or_sgd():
    """An optimiser with its two rates, and the last gradient, in its state: compiled once."""
    adam = optax.scale_by_adam()

    def init(params):
        return {"adam": adam.init(params), "rates": jnp.zeros(2), "gradient": params}

    def update(gradient, memory, params):
        scaled, moments = adam.update(gradient, memory["adam"], params)
        a, b = memory["rates"]
        updates = jax.tree.map(lambda s, g: -a * s - b * g, scaled, gradient)
        return updates, {**memory, "adam": moments, "gradient": gradient}

    return optax.GradientTransformation(init, update)


def first_state(built, rates, dtype=np.float32):
    state = state_lib.new_state(built.weights, adam_or_sgd(), ema=False)
    state = jax.tree.map(
        lambda a: np.array(a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype), state
    )
    rates = np.array(rates, dtype)
    return dataclasses.replace(state, opt_state={**state.opt_state, "rates": rates})


def in_float64(config):
    """A config of a precision that no user needs, and that the typed fields do not offer."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float64"))


class Device:
    """The training step of a run on one mesh, from and to the host."""

    def __init__(self, built, mesh):
        self.config, self.mesh = built.config, mesh
        self.step = make_train_step(dataclasses.replace(built, mesh=mesh), adam_or_sgd())
        self.compiled = None

    def __call__(self, state, seed):
        batch = batching.to_devices(make_batch(self.config, seed), state_lib.sharded(self.mesh))
        with jax.set_mesh(self.mesh):
            arguments = jax.device_put(state, state_lib.divided(self.mesh, state)), batch, {}
            if self.compiled is None:
                self.compiled = self.step.lower(*arguments).compile()
            state, told = self.compiled(*arguments)
            return state, told.loss


FLOAT64 = {f"{name} in float64": name for name in RUNS}


def compare_devices(part):
    """Trains one of RUNS, say, on eight devices and on one, and prints the differences as JSON."""
    eight, one = state_lib.create_mesh(), one_device()
    assert eight.size == 8
    compare = {"operators": compare_operators, "divided": compare_divided}
    if part in compare:
        found = compare[part](eight, one)
    elif part in FLOAT64:
        with jax.enable_x64(True):
            config = in_float64(small_config(**RUNS[FLOAT64[part]], **SMALLER))
            found = compare_run(config, np.float64, (ADAM, SGD), eight, one)
    else:
        config = small_config(**RUNS[part], **SMALLER)
        found = compare_run(config, np.float32, (SMALL_ADAM, SMALL_SGD), eight, one)
    print(json.dumps(found))


def compare_run(config, dtype, free, eight, one):
    """Steps from the same states at the usual rate, and whole trainings at the `free` rates."""
    built = run.build(config, POINTS)
    pair = Device(built, eight), Device(built, one)
    return {
        "lockstep": in_lockstep(first_state(built, ADAM, dtype), *pair),
        **{
            rule: running_freely(first_state(built, rates, dtype), *pair)
            for rule, rates in zip(("adam", "sgd"), free, strict=True)
        },
    }


# A transformer whose backbone learns, with its parameters divided between four devices.
DIVIDED = {
    **MODEL_SETTINGS["vit"],
    "model.name": "vit",
    "model.freeze_backbone": False,
    "model.remat": True,
    "targets.heatmap_size": (8, 8),
    "model.shards": 4,
}


def compare_divided(_, one):
    """Trains with divided parameters and with whole ones, and looks at where they lie."""
    built = run.build(small_config(**DIVIDED), POINTS)
    whole = run.build(small_config(**{**DIVIDED, "model.shards": 1, "model.remat": False}), POINTS)
    pair = Device(built, built.mesh), Device(whole, one)
    state = first_state(whole, SMALL_ADAM)
    after, _ = pair[0](state, 0)
    shares = {
        optim.path_name(path): leaf.size // leaf.addressable_shards[0].data.size
        for path, leaf in leaves((after.params, after.opt_state["adam"].mu))
    }
    return {
        "free": running_freely(state, *pair),
        "lockstep": in_lockstep(state, *pair),
        "shares": shares,
        "sizes": {optim.path_name(p): a.size for p, a in leaves((after.params,) * 2)},
        "gathered": len(re.findall(r" all-gather(?:-start)?\(", pair[0].compiled.as_text())),
    }


def one_device():
    return state_lib.create_mesh(devices=jax.devices()[:1])


def in_lockstep(state, eight, one):
    """Takes every step on both from the same state; returns the differences of each step."""
    found = {"loss": [], "gradient": [], "stats": []}
    for seed in range(LOCKSTEPS):
        (a, loss_a), (b, loss_b) = eight(state, seed), one(state, seed)
        pairs = {
            "loss": (loss_a, loss_b),
            "gradient": tuple(mattering(s.opt_state["gradient"]) for s in (a, b)),
            "stats": (a.stats, b.stats),
        }
        for name, pair in pairs.items():
            found[name].append(apart(*pair, relative=True))
        state = jax.tree.map(np.array, b)
    return found


def mattering(tree):
    """Leaves the biases out that a batch norm cancels: their gradient is rounding noise only."""
    named = {optim.path_name(path): leaf for path, leaf in leaves(tree)}
    return {n: a for n, a in named.items() if not re.search(r"convs/\d/bias", n)}


def running_freely(start, eight, one):
    """Runs both to the end, each by itself."""
    losses, params = [], []
    for device in (eight, one):
        state, found = start, []
        for seed in range(STEPS):
            state, loss = device(state, seed)
            found.append(float(loss))
        losses.append(found)
        params.append(jax.tree.map(np.array, state.params))
    return {
        "loss": float(np.max(np.abs(np.subtract(*losses)) / losses[1])),
        "parameters": apart(*params),
        "moved": apart(params[1], start.params),
    }


def apart(a, b, relative=False):
    """The largest difference of two trees, each leaf's relative to its largest value."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    differences = (
        float(np.abs(x - np.asarray(y)).max() / (np.abs(y).max() if relative else 1.0))
        for x, y in ((np.asarray(x), np.asarray(y)) for x, y in pairs)
    )
    return max(differences, default=0.0)  # of statistics, which a transformer has none of


def compare_operators(mesh, _):
    """Values and kernel gradients, a batch divided over eight devices evenly (16) and not (12)."""
    kernel = jnp.linspace(-1, 1, 81).reshape(3, 3, 3, 3)

    def results(conv, linear, first_stage, x, g):
        found = []
        for function, weights in (
            (conv, kernel),
            (linear, kernel[0, 0]),
            (lambda x, k: first_stage(x, k, jnp.ones(3), jnp.zeros(3))[0], kernel),
        ):
            value, backward = jax.vjp(function, x, weights)
            found += [value, backward(g[:, : value.shape[1], : value.shape[2]])[1]]
        return found

    def mine_and_plain(x, g):
        return (
            results(ops.conv_3x3, ops.linear, stem.conv_norm_relu_pool, x, g),
            results(ops.plain_conv, ops.plain_linear, stem.plain_conv_norm_relu_pool, x, g),
        )

    result = {}
    for batch, sharding in ((16, state_lib.sharded(mesh)), (12, state_lib.replicated(mesh))):
        x, g = np.random.default_rng(batch).normal(size=(2, batch, 6, 6, 3)).astype(np.float32)
        with jax.set_mesh(mesh):
            result[batch] = apart(*jax.jit(mine_and_plain)(*jax.device_put((x, g), sharding)), True)
    return result


@functools.cache
def devices(part):
    """What `compare_devices` reports from a process with eight virtual devices."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",  # compiled as users do
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.test_state", part],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
        env=environment,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_step_is_the_same_on_eight_devices_and_on_one(name):
    """Loss and batch statistics, with pairs, missing labels and dropout."""
    found = devices(name)["lockstep"]
    assert max(found["loss"]) < 1e-6
    assert max(found["stats"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT64)
def test_every_gradient_is_the_same_on_eight_devices_and_on_one(name):
    for differences in devices(name)["lockstep"].values():
        assert max(differences) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["adam", "sgd"])
@pytest.mark.parametrize("name", [*RUNS, *FLOAT64])
def test_losses_of_twenty_steps_do_not_depend_on_the_number_of_devices(name, rule):
    assert devices(name)[rule]["loss"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, *FLOAT64])
def test_parameters_after_twenty_sgd_steps_do_not_either(name):
    assert devices(name)["sgd"]["parameters"] < 1e-5
    assert devices(name)["sgd"]["moved"] > 1e-3  # the comparison is of parameters that learned


def test_operators_divide_a_batch_or_leave_it_whole():
    assert max(devices("operators").values()) < 1e-5


@pytest.mark.slow
def test_divided_parameters_learn_as_whole_ones():
    found = devices("divided")
    assert max(found["lockstep"]["loss"]) < 1e-6
    assert sorted(found["lockstep"]["gradient"])[LOCKSTEPS // 2] < 1e-5
    assert found["free"]["loss"] < 1e-5


@pytest.mark.slow
def test_large_parameters_and_their_averages_are_divided_and_gathered_again():
    found = devices("divided")
    large = {name for name, size in found["sizes"].items() if size >= 2**14}
    assert len(large) > 2
    assert {name for name, share in found["shares"].items() if share == 4} == large
    assert set(found["shares"].values()) == {1, 4}
    assert found["gathered"]


def test_devices_that_cannot_be_grouped_are_refused():
    with pytest.raises(UserError, match=r"model\.shards=3 does not divide the \d devices"):
        state_lib.create_mesh(3)


if __name__ == "__main__":
    compare_devices(sys.argv[1])

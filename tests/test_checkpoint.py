"""Checkpoints: bit-exact, replaced in order, on any number of devices, and damaged ones refused."""

import dataclasses
import gc
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

from heatmap import checkpoint
from heatmap import state as state_lib
from heatmap.checkpoint import BEST, LATEST, Checkpoints
from heatmap.errors import UserError

META = {"config": {"seed": 3, "sizes": [1, 2]}, "log": [], "best": None}


def make_state(seed=0, ema=True):
    """A state with every kind of leaf: nested lists as integers, empty parts, scalars."""
    rng = np.random.default_rng(seed)
    random = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)  # noqa: E731
    weights = {
        "params": {"convs": {0: {"kernel": random(200, 100)}, 1: {"kernel": random(3, 4)}}},
        "frozen": {},
        "stats": {"norm": {"mean": random(3), "var": random(3)}},
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = state_lib.new_state(weights, optimiser, ema)
    _, opt_state = optimiser.update(weights["params"], state.opt_state, weights["params"])
    return dataclasses.replace(state, step=jnp.int32(17), opt_state=opt_state)


def described(state, mesh=None):
    tree = checkpoint.as_tree(state)
    return checkpoint.shapes(tree, state_lib.divided(mesh or state_lib.create_mesh(), tree))


def assert_same_bits(restored, state):
    tree = checkpoint.as_tree(state)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for mine, other in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


def saved(folder, step=17, kind=LATEST, **fields):
    state = make_state(**fields)
    Checkpoints(folder, kind).save(step, checkpoint.as_tree(state), META)
    return state


@pytest.mark.parametrize("ema", [True, False])
def test_restore_gives_back_every_bit(tmp_path, ema):
    state = saved(tmp_path, ema=ema)
    latest = Checkpoints(tmp_path, LATEST)  # as another process would open it
    restored = latest.restore(described(state))
    assert_same_bits(restored, state)
    again = state_lib.TrainState(**restored)
    assert state_lib.sha256(again) == state_lib.sha256(state)
    assert (again.ema == {}) == (not ema)
    assert latest.meta() == META
    assert latest.step() == 17


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    latest = Checkpoints(tmp_path, LATEST)
    assert latest.step() is None
    for read in (latest.meta, lambda: latest.restore(described(make_state()))):
        with pytest.raises(UserError, match=r"checkpoints/latest holds no checkpoint; train first"):
            read()


@pytest.mark.parametrize("second", [20, 17, 5])  # later, again, and after being set back
def test_the_newest_save_replaces_the_one_before(tmp_path, second):
    saved(tmp_path, step=17)
    state = saved(tmp_path, step=second, seed=1)
    latest = Checkpoints(tmp_path, LATEST)
    assert latest.step() == second
    assert [p.name for p in latest.folder.iterdir()] == [str(second)]
    assert_same_bits(latest.restore(described(state)), state)


def test_best_and_latest_are_kept_apart(tmp_path):
    best = saved(tmp_path, step=4, kind=BEST, seed=4)
    latest = saved(tmp_path, step=9, kind=LATEST, seed=9)
    for kind, step, state in ((BEST, 4, best), (LATEST, 9, latest)):
        found = Checkpoints(tmp_path, kind)
        assert found.step() == step
        assert_same_bits(found.restore(described(state)), state)


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    state = saved(tmp_path)
    half = Checkpoints(tmp_path, LATEST).folder / "30.orbax-checkpoint-tmp"
    (half / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    latest = Checkpoints(tmp_path, LATEST)
    assert latest.step() == 17
    assert_same_bits(latest.restore(described(state)), state)
    newer = make_state(seed=5)
    latest.save(30, checkpoint.as_tree(newer), META)  # and does not stand in the way
    assert_same_bits(Checkpoints(tmp_path, LATEST).restore(described(newer)), newer)


def misfits():
    state = make_state()
    return {
        "one more": dataclasses.replace(state, frozen={"head": jnp.ones(2)}),
        "one less": dataclasses.replace(state, stats={"norm": {"mean": jnp.ones(3)}}),
        "another name": dataclasses.replace(state, ema={"other": state.ema["convs"]}),
        "another shape": dataclasses.replace(
            state, stats={"norm": {"mean": jnp.ones(4), "var": jnp.ones(3)}}
        ),
        "another type": dataclasses.replace(
            state, stats=jax.tree.map(lambda a: a.astype(jnp.bfloat16), state.stats)
        ),
    }


@pytest.mark.parametrize("kind", misfits())
def test_arrays_that_do_not_fit_are_refused(tmp_path, kind):
    saved(tmp_path)
    with pytest.raises(UserError, match=r"latest/17 cannot be restored .*another --workdir") as e:
        Checkpoints(tmp_path, LATEST).restore(described(misfits()[kind]))
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 600


def damage(path, how):
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 0x10
        path.write_bytes(flipped)


@pytest.fixture
def collected(monkeypatch):
    """Orbax leaves reads unfinished when one fails; Python remarks on it when it collects them."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    yield
    gc.collect()


@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_damage_to_any_file_is_either_harmless_or_a_sentence(tmp_path, how):
    """Each file in turn; the arrays that come back are the right ones or none."""
    state = saved(tmp_path)
    folder = Checkpoints(tmp_path, LATEST).folder
    refused = {}
    for path in [p for p in sorted(folder.rglob("*")) if p.is_file()]:
        data = path.read_bytes()
        damage(path, how)
        try:
            latest = Checkpoints(tmp_path, LATEST)
            assert_same_bits(latest.restore(described(state)), state)
            assert latest.meta() == META
        except UserError as error:
            refused[path.relative_to(folder)] = str(error)
        path.write_bytes(data)
    assert all("latest/17 cannot be restored (" in sentence for sentence in refused.values())
    assert not any("\n" in sentence for sentence in refused.values())
    kinds = {name.parts[1] for name in refused}
    assert {"state", "meta"} <= kinds
    large = max(folder.rglob("*"), key=lambda p: p.stat().st_size).relative_to(folder)
    assert how == "cut" or large in refused  # Orbax keeps a spare half in the largest file


# --- another number of devices ------------------------------------------------------------------


def mesh_of(count):
    return state_lib.create_mesh(devices=jax.devices()[:count])


def move_between_devices(folder):
    """From one device to eight, to two groups of four that hold a quarter each, and to one."""
    state, quarters = make_state(), state_lib.create_mesh(4)
    restored = Checkpoints(folder, LATEST).restore(described(state, mesh_of(8)))
    assert_same_bits(restored, state)
    assert {len(a.sharding.device_set) for a in jax.tree.leaves(restored)} == {8}
    Checkpoints(folder, BEST).save(18, restored, META)
    divided = Checkpoints(folder, BEST).restore(described(state, quarters))
    assert_same_bits(divided, state)
    kernel = divided["params"]["convs"][0]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(50, 100)}
    Checkpoints(folder, BEST).save(19, divided, META)
    back = Checkpoints(folder, BEST).restore(described(state, mesh_of(1)))
    assert_same_bits(back, state)
    hashes = [state_lib.sha256(state_lib.TrainState(**tree)) for tree in (restored, divided, back)]
    print(json.dumps({"devices": jax.device_count(), "hashes": hashes}))


def test_checkpoints_move_between_one_device_and_eight(tmp_path):
    state = saved(tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", "tests.test_checkpoint", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    assert report == {"devices": 8, "hashes": [state_lib.sha256(state)] * 3}
    assert_same_bits(Checkpoints(tmp_path, BEST).restore(described(state)), state)


if __name__ == "__main__":
    move_between_devices(pathlib.Path(sys.argv[1]))

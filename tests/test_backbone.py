"""A pretrained backbone in a run: loaded, left alone, left out of checkpoints and found again."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from heatmap import checkpoint, optim, workdir
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.models import pretrained
from heatmap.models.vit import ARCHITECTURES
from heatmap.step import make_train_step
from heatmap.train import train
from tests import published
from tests.helpers import make_config
from tests.test_train import log_of, sha_of, tiny

TINY = ARCHITECTURES["tiny16"]
POINTS = KeypointSet(("bright", "dim"))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)


def write_weights(folder, seed=0):
    tree = published.random_parameters(TINY, seed)
    sha256 = state_lib.tree_sha256(tree)
    description = pretrained.Description("tiny16", "model.safetensors", "0", sha256, MEAN, STD)
    pretrained.save(folder, tree, description)
    return tree


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_weights(folder)
    return folder


def settings(weights="", **overrides):
    found = {
        "model.name": "vit",
        "model.backbone": "tiny16",
        "model.backbone_init": "pretrained" if weights else "random",
        "model.backbone_weights": str(weights),
        "model.head": "simple",  # the quickest to compile
        "data.channels": 3,
        "data.image_size": (32, 32),
        "data.mean": MEAN,
        "data.std": STD,
        "targets.heatmap_size": (16, 16),
    }
    return found | overrides


def names(tree):
    return {optim.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def assert_equal(mine, expected):
    assert jax.tree.structure(mine) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


# --- which arrays a model starts with -----------------------------------------------------------


def test_a_frozen_backbone_is_the_one_in_the_file(weights):
    built = run_lib.build(make_config(**settings(weights)), POINTS)
    assert_equal(built.weights["frozen"], {"backbone": published.random_parameters(TINY)})
    assert all(name.startswith("head/") for name in names(built.weights["params"]))


def test_a_trained_backbone_starts_from_the_file_too(weights):
    config = make_config(**settings(weights, **{"model.freeze_backbone": False}))
    built = run_lib.build(config, POINTS)
    assert_equal(built.weights["params"]["backbone"], published.random_parameters(TINY))
    assert built.weights["frozen"] == {}


def test_a_backbone_can_be_frozen_in_part(weights):
    overrides = {"model.freeze_backbone": False, "optim.freeze_paths": (r"^backbone/blocks/0/",)}
    built = run_lib.build(make_config(**settings(weights, **overrides)), POINTS)
    tree = published.random_parameters(TINY)
    frozen, trained = (built.weights[part]["backbone"] for part in ("frozen", "params"))
    assert_equal(frozen, {"blocks": {0: tree["blocks"][0]}})
    assert names(frozen) | names(trained) == names(tree)
    assert_equal(trained["blocks"], {1: tree["blocks"][1]})


def test_a_random_backbone_follows_from_the_seed_whatever_the_head():
    heads = ("deconv", "cls_mlp")
    losses = {"cls_mlp": {"loss.name": "coordinate_mse"}}
    found = [
        run_lib.build(
            make_config(**settings(**{"model.head": head, **losses.get(head, {})})), POINTS
        ).weights["frozen"]
        for head in heads
    ]
    assert_equal(*found)
    other = run_lib.build(make_config(**settings(seed=1)), POINTS).weights["frozen"]
    kernels = (tree["backbone"]["patch_embed"]["kernel"] for tree in (found[0], other))
    assert np.any(np.not_equal(*kernels))


def test_the_head_does_not_depend_on_where_the_backbone_comes_from(weights):
    heads = [
        run_lib.build(make_config(**settings(folder)), POINTS).weights["params"]["head"]
        for folder in (weights, "")
    ]
    assert_equal(*heads)


# --- no gradients, no optimiser memory, no bytes ------------------------------------------------


def dot_products(jaxpr):
    """Counts the matrix products and convolutions of a program, those of its parts included."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name in ("dot_general", "conv_general_dilated")
        for parameter in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            total += dot_products(inner) if hasattr(inner, "eqns") else 0
    return total


def products_of_a_step(**overrides):
    config = make_config(**settings(**{"loss.name": "coordinate_mse", "model.head": "cls_mlp"}))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **overrides))
    built = run_lib.build(config, POINTS)
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)

    def loss(params, weights, image):
        output, _ = built.network.train(params, weights["frozen"], {}, image, jax.random.key(0))
        return output.sum()

    forward = jax.make_jaxpr(loss)(built.weights["params"], built.weights, image)
    both = jax.make_jaxpr(jax.grad(loss))(built.weights["params"], built.weights, image)
    return dot_products(forward.jaxpr), dot_products(both.jaxpr)


def test_no_gradients_are_computed_in_a_frozen_backbone():
    forward, both = products_of_a_step()
    # Of the head's two layers: both weights, and the hidden units between them.
    assert both - forward == 3
    forward, both = products_of_a_step(freeze_backbone=False)
    assert both - forward > 2 * 2 * 8  # for each of two blocks, input and weights of eight products


def test_optimiser_and_average_know_nothing_of_a_frozen_backbone(weights):
    config = make_config(**settings(weights, **{"optim.ema_decay": 0.9}))
    built = run_lib.build(config, POINTS)
    optimiser, _ = optim.create(config.optim, 2)
    with jax.set_mesh(built.mesh):
        state = state_lib.new_state(built.weights, optimiser, ema=True)
        before = jax.tree.map(np.array, state.frozen)
        batch = {
            "image": np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8),
            "keypoints": np.full((4, 2, 2), 9.0, np.float32),
            "visibility": np.full((4, 2), 2, np.int32),
            "_mask": np.ones(4, np.float32),
        }
        state, _ = make_train_step(built, optimiser)(state, batch, {})
    assert not any("backbone" in name for name in names((state.params, state.opt_state, state.ema)))
    assert_equal(state.frozen, before)


def test_a_checkpoint_of_dinov3_vits16_is_under_40_megabytes(tmp_path):
    """What is saved are three times the head's 2,098,820 numbers: weights and Adam's moments."""
    folder = tmp_path / "weights"
    folder.mkdir()  # shapes suffice
    overrides = {"model.backbone": "dinov3_vits16", "data.image_size": (256, 256)}
    overrides |= {"targets.heatmap_size": (64, 64), "model.head": "deconv"}
    config = make_config(**settings(folder, **overrides))
    _, shapes = run_lib._describe(config, KeypointSet(("a", "b", "c", "d")))
    optimiser, _ = optim.create(config.optim, 2)
    state = jax.eval_shape(lambda w: state_lib.new_state(w, optimiser, False), shapes)
    stored, backbone = checkpoint._divide(checkpoint.as_tree(state))
    megabytes = lambda tree: sum(a.size * 4 for a in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    assert megabytes(backbone) == pytest.approx(21.596160 * 4)
    assert 3 * 2.098820 * 4 <= megabytes(stored) < 25.3


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- whole runs ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_on_a_frozen_backbone_resumes_and_is_opened(tiny_root, tmp_path, weights, capsys):
    config = tiny(tiny_root, **settings(weights, **{"train.steps": 7}))
    train(config, tmp_path / "whole")
    whole = sha_of(capsys.readouterr().out)
    train(tiny(tiny_root, **settings(weights, **{"train.steps": 4})), tmp_path / "parts")
    train(config, tmp_path / "parts")
    output = capsys.readouterr().out
    assert "resumed at step 4" in output
    assert output.splitlines()[-1] == whole
    assert log_of(tmp_path / "whole")["vit"][-1]["step"] == 7
    opened = run_lib.open_run(tmp_path / "whole").weights
    assert_equal(opened["frozen"], {"backbone": published.random_parameters(TINY)})
    for kind in ("latest", "best"):
        stored = next((tmp_path / "whole" / "checkpoints" / kind).iterdir())
        layout = (stored / "state" / "_METADATA").read_text()
        assert "head" in layout
        assert "backbone" not in layout


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory, weights):
    """A run of two steps with its own copy of the weights."""
    place = tmp_path_factory.mktemp("trained")
    shutil.copytree(weights, place / "weights")
    config = tiny(tiny_root, **settings(place / "weights", **{"train.steps": 2}))
    train(config, place / "run")
    return config, place


def test_other_weights_in_the_same_place_are_refused(trained, tmp_path):
    config, place = trained
    (place / "weights").rename(place / "kept")
    write_weights(place / "weights", seed=9)
    try:
        for use in (lambda: run_lib.open_run(place / "run"), lambda: train(config, place / "run")):
            with pytest.raises(
                UserError, match=r"its frozen backbone had the sha256 [0-9a-f]{12},"
            ):
                use()
    finally:
        shutil.rmtree(place / "weights")
        (place / "kept").rename(place / "weights")


def test_weights_that_moved_are_named_anew(trained, tmp_path, capsys):
    """The hash knows them again, so that a finished run needs no training for it."""
    config, place = trained
    shutil.copytree(place, tmp_path / "place")
    (tmp_path / "place" / "weights").rename(tmp_path / "moved")
    run = tmp_path / "place" / "run"
    moved = dataclasses.replace(
        config, model=dataclasses.replace(config.model, backbone_weights=str(tmp_path / "moved"))
    )
    train(moved, run)
    assert "resumed at step 2" in capsys.readouterr().out
    assert workdir.read_config(run).model.backbone_weights == str(tmp_path / "moved")
    assert run_lib.open_run(run).weights["frozen"]


def test_lost_weights_are_asked_for(trained, tmp_path):
    _, place = trained
    shutil.copytree(place / "run", tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    stored["model"]["backbone_weights"] = str(tmp_path / "lost")
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"lost' does not exist, and nobody has published"):
        run_lib.open_run(tmp_path / "run")


def test_a_random_backbone_is_made_again_of_its_seed(tiny_root, tmp_path, capsys):
    config = tiny(tiny_root, **settings(**{"train.steps": 2}))
    train(config, tmp_path / "run")
    first = sha_of(capsys.readouterr().out)
    train(config, tmp_path / "run")
    assert sha_of(capsys.readouterr().out) == first
    opened = run_lib.open_run(tmp_path / "run").weights["frozen"]
    assert_equal(opened, run_lib.build(config, POINTS).weights["frozen"])


@pytest.mark.slow
def test_a_partly_frozen_backbone_resumes(tiny_root, tmp_path, weights, capsys):
    overrides = {"model.freeze_backbone": False, "optim.freeze_paths": (r"^backbone/blocks/0/",)}
    for steps in (2, 3):
        train(tiny(tiny_root, **settings(weights, **overrides, **{"train.steps": steps})), tmp_path)
    assert "resumed at step 2" in capsys.readouterr().out
    opened = run_lib.open_run(tmp_path).weights
    tree = published.random_parameters(TINY)
    assert_equal(opened["frozen"]["backbone"]["blocks"][0], tree["blocks"][0])
    kernel = opened["params"]["backbone"]["patch_embed"]["kernel"]
    assert np.any(kernel != tree["patch_embed"]["kernel"])  # it has learned


@pytest.mark.slow
def test_a_run_of_full_size_stays_under_40_megabytes(tiny_root, tmp_path):
    overrides = {"model.backbone": "dinov3_vits16", "data.image_size": (256, 256)}
    overrides |= {"targets.heatmap_size": (64, 64), "model.head": "deconv"}
    overrides |= {"train.steps": 2, "eval.sheet_examples": 0}
    train(tiny(tiny_root, **settings(**overrides)), tmp_path / "run")
    sizes = {path.name: size_of(path) for path in (tmp_path / "run" / "checkpoints").glob("*/*")}
    assert sizes
    assert all(re.fullmatch(r"\d+", name) for name in sizes)
    assert max(sizes.values()) < 40e6

"""Whole runs in this process, on a data set small enough to train on in seconds."""

import dataclasses
import json
import math
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from heatmap import checkpoint, evaluate, workdir
from heatmap import run as run_lib
from heatmap.checkpoint import Checkpoints
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.models import MODELS
from heatmap.train import train
from input_pipeline import batching
from tests.helpers import MODEL_SETTINGS, TINY, make_config


def tiny(root, **overrides) -> Config:
    settings = {"data.root": str(root), "log.every_steps": 5}
    return make_config(**{**TINY, **settings, **overrides})


def sha_of(output: str) -> str:
    return next(line for line in output.splitlines() if line.startswith("state_sha256="))


def log_of(folder):
    return json.loads((folder / "training_log.json").read_text())


@pytest.fixture(scope="module")
def finished(tiny_root, tmp_path_factory):
    """A finished run of 40 steps, with everything switched on."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    everything = {"log.tensorboard": True, "eval.csv": True, "eval.sheet_examples": 2}
    config = tiny(tiny_root, **{"train.steps": 40, **everything})
    scores = train(config, folder)
    return config, folder, scores


@pytest.fixture(scope="module")
def brief(tiny_root, tmp_path_factory):
    """A finished run of two steps, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("runs") / "brief"
    config = tiny(tiny_root, **{"train.steps": 2})
    train(config, folder)
    return config, folder


def test_a_run_writes_every_file_of_a_workdir(finished):
    config, folder, scores = finished
    assert Config(**vars(workdir.read_config(folder))) == config
    assert json.loads((folder / "metrics.json").read_text()) == scores
    for name in ("predictions/val.parquet", "predictions/test.parquet", "predictions/test.csv"):
        assert (folder / name).is_file(), name
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best", "latest"]
    maps = np.load(folder / "heatmaps" / "0000040.npz")
    assert maps["heatmaps"].shape == (2, 16, 16, 2)
    assert maps["ids"].tolist() == ["val/000.png", "val/001.png"]
    sheet = np.asarray(Image.open(folder / "figures" / "val_0000040.png"))
    assert sheet.std() > 10
    assert list((folder / "tensorboard").iterdir())


def test_a_run_learns(finished):
    _, folder, scores = finished
    log = log_of(folder)["unet"]
    assert [line["step"] for line in log] == sorted({line["step"] for line in log})
    assert log[-1]["step"] == 40
    assert log[-1]["train_loss"] < log[0]["train_loss"] / 2
    assert log[-1]["val_loss"] < log[0]["val_loss"]
    assert scores["test/error_px/median"] < 6  # chance is about 16
    assert {"val/pck@0.05", "test/pck@0.05", "test/error_px/bright"} <= set(scores)


def test_log_lines_are_where_epochs_end(finished):
    epochs = [(line["epoch"], line["step"]) for line in log_of(finished[1])["unet"]]
    # 20 examples in batches of 8: epoch e is complete with the step that sees example 20·e.
    assert epochs == [(e, -(-20 * e // 8)) for e in range(1, 17)]


def test_predictions_hold_what_was_scored(finished):
    _, folder, scores = finished
    rows = pq.read_table(folder / "predictions" / "test.parquet").to_pydict()
    assert list(rows) == [
        "id", "instance", "group", "point", "x", "y", "score", "entropy", "x_true", "y_true",
        "weight",
    ]  # fmt: skip
    assert len(rows["id"]) == 6 * 2
    errors = np.hypot(*(np.array(rows[k]) - np.array(rows[f"{k}_true"]) for k in "xy"))
    assert np.mean(errors) == pytest.approx(scores["test/error_px"], rel=1e-6)


def test_a_finished_run_prints_its_table_again(finished, capsys):
    config, folder, scores = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}
    assert train(config, folder) == scores
    output = capsys.readouterr().out
    assert "resumed at step 40" in output
    assert "error_px/median" in output
    assert "state_sha256=" in output
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}


def test_evaluate_scores_the_best_checkpoint_alike(finished, capsys):
    config, folder, scores = finished
    again = evaluate.evaluate(folder, ["val", "test"], config)
    assert again == pytest.approx(scores, rel=1e-5, nan_ok=True)
    log = log_of(folder)["unet"]
    assert again["val/loss"] in [line["val_loss"] for line in log]


def test_evaluate_with_another_decoder_leaves_the_result_alone(finished, capsys):
    _, folder, scores = finished
    evaluate.main([f"--workdir={folder}", "--split=test", "--decoder=argmax"])
    assert json.loads((folder / "metrics.json").read_text()) == scores
    other = json.loads((folder / "decoders" / "argmax" / "metrics.json").read_text())
    assert other["test/loss"] == pytest.approx(scores["test/loss"], rel=1e-5)
    assert other["test/error_px"] != scores["test/error_px"]


def test_what_could_not_be_measured_stays_null_beside_later_scores(tmp_path):
    evaluate.save_metrics(tmp_path / "metrics.json", {"test/loss": 0.5, "test/err_cm": math.nan})
    earlier = workdir.read_metrics(tmp_path)
    evaluate.save_metrics(tmp_path / "metrics.json", {**earlier, "train/loss": math.inf})
    expected = {"test/loss": 0.5, "test/err_cm": None, "train/loss": None}
    assert workdir.read_metrics(tmp_path) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--split=tset"], "did you mean 'test'"),
        (["--decoder=drak"], "did you mean 'dark'"),
        (["--decoder=soft_argmax"], "cannot read the maps"),
    ],
)
def test_evaluate_refuses_what_is_not_there(finished, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate.main([f"--workdir={finished[1]}", *arguments])


def test_evaluate_refuses_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        evaluate.main([f"--workdir={tmp_path}"])


def test_evaluate_refuses_changed_labels(brief, tmp_path):
    config, folder = brief
    root = pathlib.Path(shutil.copytree(config.data.root, tmp_path / "data"))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    shutil.copytree(folder, tmp_path / "run")
    assert evaluate.evaluate(tmp_path / "run", ["val"], config)
    labels = json.loads((root / "val_annotations.json").read_text())
    labels["images"][0]["keypoints"][0][0] += 1
    (root / "val_annotations.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match="its split has changed"):
        evaluate.evaluate(tmp_path / "run", ["val"], config)
    with pytest.raises(UserError, match="its split has changed"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param({"optim.ema_decay": 0.5, "train.save_every_steps": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_run_in_two_parts_ends_as_in_one(tiny_root, tmp_path, capsys, extra):
    train(tiny(tiny_root, **{"train.steps": 8, **extra}), tmp_path / "whole")
    whole = capsys.readouterr().out
    train(tiny(tiny_root, **{"train.steps": 4, **extra}), tmp_path / "parts")
    capsys.readouterr()
    train(tiny(tiny_root, **{"train.steps": 8, **extra}), tmp_path / "parts")
    parts = capsys.readouterr().out
    assert "resumed at step 4" in parts
    assert sha_of(whole) == sha_of(parts)
    # The shorter run ended, and so was scored, with step 4, which is not the end of an epoch: only
    # the line of step 5 sums up another number of steps.
    a, b = (log_of(tmp_path / name)["unet"] for name in ("whole", "parts"))
    assert [line["step"] for line in a] == [3, 5, 8]
    assert [line["step"] for line in b] == [3, 4, 5, 8]
    assert (b[0], b[3]) == (a[0], a[2])
    assert b[2]["val_loss"] == a[1]["val_loss"]


def test_max_hours_saves_and_the_same_command_goes_on(tiny_root, tmp_path, capsys):
    settings = {"train.steps": 5}
    train(tiny(tiny_root, **settings), tmp_path / "whole")
    whole = capsys.readouterr().out
    limit = {"train.max_hours": 1e-9}
    scores = train(tiny(tiny_root, **settings, **limit), tmp_path / "limited")
    assert "train.max_hours reached at step 1 of 5" in capsys.readouterr().out
    assert scores == {} or "val/loss" in scores
    train(tiny(tiny_root, **settings), tmp_path / "limited")
    limited = capsys.readouterr().out
    assert "resumed at step 1" in limited
    assert sha_of(whole) == sha_of(limited)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "limited")


def test_another_config_is_refused_with_the_fields_that_differ(finished, tiny_root):
    config, folder, _ = finished
    other = dataclasses.replace(config, seed=7, train=dataclasses.replace(config.train, steps=50))
    with pytest.raises(UserError, match="seed: 0 -> 7") as error:
        train(other, folder)
    assert "train.steps" not in str(error.value)


def test_a_folder_that_is_not_ours_is_refused(tiny_root, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        train(tiny(tiny_root), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    other = "import sys, time; from heatmap import workdir; from pathlib import Path\n"
    other += "with workdir.locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", other, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "in\n"
    with (
        pytest.raises(UserError, match="Another process is at work in"),
        workdir.locked(tmp_path / "run", patience=0),
    ):
        pass
    holder.kill()
    holder.wait()
    with workdir.locked(tmp_path / "run", patience=0):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()  # nothing was written to it


def test_scores_of_an_earlier_best_checkpoint_are_not_taken_for_the_last(
    tiny_root, tmp_path, monkeypatch
):
    """`heatmap.evaluate` may run while the training goes on."""
    config, folder = tiny(tiny_root, **{"train.steps": 6}), tmp_path / "run"
    real = Checkpoints.save

    def evaluated_meanwhile(self, step, tree, meta):
        real(self, step, tree, meta)
        if self.folder.name == "latest" and step == 5:
            (folder / "metrics.json").write_text('{"val/loss": -1.0, "test/loss": -1.0}')

    monkeypatch.setattr(Checkpoints, "save", evaluated_meanwhile)
    assert train(config, folder)["val/loss"] > 0


def test_a_workdir_below_a_file_is_refused(tiny_root, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="is a file, so --workdir"):
            train(tiny(tiny_root), place)


def test_data_may_move(finished, tmp_path, capsys):
    config, folder, scores = finished
    moved = shutil.copytree(config.data.root, tmp_path / "elsewhere")
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(moved)))
    shutil.copytree(folder, tmp_path / "run")
    assert train(elsewhere, tmp_path / "run") == scores
    evaluate.main([f"--workdir={folder}", "--split=test", f"--root={moved}"])
    assert json.loads((folder / "metrics.json").read_text()) == pytest.approx(scores, rel=1e-5)


def test_a_longer_past_than_future_is_refused(finished, tiny_root):
    config, folder, _ = finished
    before = (folder / "config.json").read_text()
    shorter = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5))
    with pytest.raises(UserError, match="trained for 40 steps, more than the 5"):
        train(shorter, folder)
    assert (folder / "config.json").read_text() == before


def test_a_missing_array_in_the_checkpoint_is_a_sentence(brief, tmp_path):
    config, folder = brief
    shutil.copytree(folder, tmp_path / "run")
    latest = next((tmp_path / "run" / "checkpoints" / "latest").iterdir())
    shutil.rmtree(latest / "state")
    with pytest.raises(UserError, match="cannot be restored"):
        train(config, tmp_path / "run")


def test_a_loss_that_is_not_finite_names_step_batch_and_checkpoint(tiny_root, tmp_path):
    settings = {"optim.name": "sgd", "optim.learning_rate": 1e30, "train.save_every_steps": 1}
    with pytest.raises(UserError, match=r"Step 1, .* not finite") as error:
        train(tiny(tiny_root, **settings), tmp_path / "run")
    assert "train/0" in str(error.value)
    assert "There is no checkpoint" in str(error.value)
    assert checkpoint.saved_step(tmp_path / "run") is None  # what is not finite is not saved


def test_the_last_good_checkpoint_is_named_and_is_good(tiny_root, tmp_path, monkeypatch):
    real = batching.train_batches

    def poisoned(*arguments):
        for i, batch in enumerate(real(*arguments), start=1):
            yield {**batch, "keypoints": batch["keypoints"] * (np.nan if i == 3 else 1)}

    monkeypatch.setattr(batching, "train_batches", poisoned)
    config = tiny(tiny_root, **{"train.save_every_steps": 1, "train.steps": 4})
    with pytest.raises(UserError, match=r"Step 3, .* checkpoint is of step 2"):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    assert train(config, tmp_path / "run")


def test_settings_can_be_mended_in_the_same_workdir(tiny_root, tmp_path):
    with pytest.raises(UserError, match=r"data\.root"):
        train(tiny(tmp_path / "typo"), tmp_path / "run")
    assert train(tiny(tiny_root, **{"train.steps": 2}), tmp_path / "run")


def test_a_lost_training_log_is_written_again(finished):
    config, folder, _ = finished
    path = folder / "training_log.json"
    before = path.read_text()
    path.unlink()
    train(config, folder)
    assert path.read_text() == before


@pytest.mark.slow
def test_the_best_and_the_latest_checkpoint_agree_after_a_kill_between_them(
    tiny_root, tmp_path, monkeypatch
):
    real = Checkpoints.save

    def killed(self, step, tree, meta):
        if self.folder.name == "latest" and step == 5:
            raise KeyboardInterrupt
        real(self, step, tree, meta)

    monkeypatch.setattr(Checkpoints, "save", killed)
    config = tiny(tiny_root, **{"train.steps": 6})
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    latest = Checkpoints(tmp_path / "run", "latest").meta()
    assert latest["best"]["step"] == 3
    assert Checkpoints(tmp_path / "run", "best").has(3)
    assert run_lib.open_run(tmp_path / "run").weights
    assert train(config, tmp_path / "run") == train(config, tmp_path / "whole")


def test_the_config_in_the_checkpoint_is_the_one_that_counts(brief, tmp_path):
    config, folder = brief
    shutil.copytree(folder, tmp_path / "run")
    other = dataclasses.replace(config, seed=5)
    workdir.claim(tmp_path / "run", other)
    with pytest.raises(UserError, match="seed: 0 -> 5"):
        train(other, tmp_path / "run")


def test_interchangeable_without_pairs_is_refused(tiny_root, tmp_path):
    with pytest.raises(UserError, match=r"data\.interchangeable_pairs"):
        train(tiny(tiny_root, **{"loss.interchangeable": True}), tmp_path / "run")


@pytest.mark.slow
def test_frozen_layers_keep_their_statistics(tiny_root, tmp_path):
    settings = {"optim.freeze_paths": ("^encoder/",), "train.steps": 3}
    config = tiny(tiny_root, **settings)
    train(config, tmp_path / "run")
    fresh = run_lib.build(config, run_lib.open_run(tmp_path / "run").points).weights
    trained = run_lib.open_run(tmp_path / "run").weights
    for a, b in zip(
        *(jax.tree.leaves(w["stats"]["encoder"]) for w in (fresh, trained)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    heads = (w["stats"]["norms"] for w in (fresh, trained))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, heads), strict=True))


@pytest.mark.slow
def test_the_average_of_the_weights_is_what_is_scored(tiny_root, tmp_path):
    settings = {"train.steps": 5}
    plain = train(tiny(tiny_root, **settings), tmp_path / "plain")
    average = {"optim.ema_decay": 0.5}
    averaged = train(tiny(tiny_root, **settings, **average), tmp_path / "averaged")
    assert plain["val/loss"] != averaged["val/loss"]
    a, b = (log_of(tmp_path / name)["unet"] for name in ("plain", "averaged"))
    assert [x["train_loss"] for x in a] == [x["train_loss"] for x in b]


@pytest.mark.parametrize("metric", ["val/pck@0.5", "val/eror_px"])
def test_a_best_metric_that_is_not_measured_is_refused_before_training(tiny_root, tmp_path, metric):
    with pytest.raises(UserError, match=r"train\.best_metric=.*did you mean"):
        train(tiny(tiny_root, **{"train.best_metric": metric}), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_model_trains_and_is_scored(tiny_root, tmp_path, name, dtype):
    settings = {"model.name": name, "model.dtype": dtype, "train.steps": 3}
    scores = train(tiny(tiny_root, **settings, **MODEL_SETTINGS[name]), tmp_path / "run")
    assert np.isfinite(scores["test/error_px"])


@pytest.mark.slow
def test_targets_rendered_by_the_host_train_alike(tiny_root, tmp_path):
    for where in ("host", "device"):
        train(tiny(tiny_root, **{"targets.render": where, "train.steps": 5}), tmp_path / where)
    host, device = (log_of(tmp_path / where)["unet"] for where in ("host", "device"))
    for a, b in zip(host, device, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)


@pytest.mark.slow
def test_several_steps_in_one_dispatch_are_the_same_steps(tiny_root, tmp_path, capsys):
    """Also where an evaluation, a report or the end comes in between, and after a stop."""
    settings = {"train.steps": 17, "train.eval_every_steps": 6, "optim.learning_rate": 1e-4}
    one = train(tiny(tiny_root, **settings), tmp_path / "one")
    grouped = {**settings, "train.steps_per_dispatch": 4}
    train(tiny(tiny_root, **{**grouped, "train.steps": 9}), tmp_path / "four")
    several = train(tiny(tiny_root, **grouped), tmp_path / "four")
    assert "resumed at step 9" in capsys.readouterr().out
    assert several["val/loss"] == pytest.approx(one["val/loss"], rel=1e-5)
    first, then = (log_of(tmp_path / name)["unet"] for name in ("one", "four"))
    assert [line["step"] for line in first] == [6, 12, 17]
    assert [line["step"] for line in then] == [6, 9, 12, 17]
    assert then[0]["train_loss"] == pytest.approx(first[0]["train_loss"], rel=1e-5)


def test_a_bad_step_among_several_is_named(tiny_root, tmp_path):
    bad = {"optim.learning_rate": 1e38, "optim.name": "sgd", "train.steps_per_dispatch": 5}
    with pytest.raises(UserError, match=r"Step [12], with the loss"):
        train(tiny(tiny_root, **bad), tmp_path / "run")


VIT = {**MODEL_SETTINGS["vit"], "model.name": "vit", "targets.heatmap_size": (8, 8)}


@pytest.mark.slow
def test_kept_features_train_and_score_as_pictures_do(tiny_root, tmp_path, capsys):
    settings = {**VIT, "train.steps": 8, "optim.learning_rate": 1e-3, "train.eval_every_steps": 4}
    expected = train(tiny(tiny_root, **settings), tmp_path / "pictures")
    kept = {**settings, "model.keep_features": True}
    scores = train(tiny(tiny_root, **kept), tmp_path / "features")
    assert "keeps the features of" in capsys.readouterr().out
    assert scores == pytest.approx(expected, rel=1e-4, nan_ok=True)
    log, other = (log_of(tmp_path / name)["vit"] for name in ("pictures", "features"))
    assert [a["train_loss"] for a in log] == pytest.approx([b["train_loss"] for b in other])


def test_the_backbone_runs_once_per_picture(tiny_root, tmp_path, monkeypatch):
    """The steps are given features, and read no pictures."""
    rendered = batching.render_picture
    seen = []

    def seeing(*arguments, **how):
        seen.append(how["recolour"])
        return rendered(*arguments, **how)

    monkeypatch.setattr(batching, "render_picture", seeing)
    settings = {**VIT, "model.keep_features": True, "train.steps": 3}
    train(tiny(tiny_root, **settings), tmp_path / "run")
    assert seen
    assert True not in seen  # no training picture has been rendered


def test_weights_and_biases_gets_the_numbers_offline(tiny_root, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(tiny(tiny_root, **{"log.wandb": True, "train.steps": 3}), tmp_path / "run")
    records = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(records) == 1
    assert b"val/error_px/median" in records[0].read_bytes()

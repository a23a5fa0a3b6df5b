"""What is read of a workdir, and of damaged ones."""

import json

import pytest

from heatmap import evaluate, workdir
from heatmap.errors import UserError
from heatmap.report import methods
from tests.helpers import make_config


@pytest.mark.parametrize("content", [b'{"a": \xff}', b"{", b"[]", b"3", b"9" * 9999, b"[" * 10**6])
@pytest.mark.parametrize("name", [workdir.CONFIG, workdir.METRICS, workdir.TRAINING_LOG])
def test_a_damaged_file_is_a_sentence_that_names_it(tmp_path, name, content):
    readers = {
        workdir.CONFIG: workdir.read_config,
        workdir.METRICS: workdir.read_metrics,
        workdir.TRAINING_LOG: lambda folder: methods.read_log(folder, make_config()),
    }
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path / name} .*; (put|delete|remove).*\\.$"):
        readers[name](tmp_path)


def test_a_start_in_a_damaged_workdir_is_a_sentence(tmp_path):
    (tmp_path / "checkpoints" / "latest" / "1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest" / "1" / "_CHECKPOINT_METADATA").touch()
    (tmp_path / workdir.CONFIG).write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        workdir.check(tmp_path, make_config())


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {}, 10**400])
def test_a_score_that_is_no_number_is_named(tmp_path, value):
    workdir.write_json(tmp_path / workdir.METRICS, {"val/loss": None, "val/pck@0.1": value})
    with pytest.raises(UserError, match=r"metrics\.json: 'val/pck@0\.1' must be a number"):
        workdir.read_metrics(tmp_path)


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read .*; mend it"):
        workdir.read_json(tmp_path, "mend it")  # a folder


def test_scores_come_back_as_they_were_saved(tmp_path):
    scores = {"val/loss": 0.5, "val/pck@0.1": float("nan"), "val/examples": 6}
    evaluate.save_metrics(tmp_path / workdir.METRICS, scores)
    assert workdir.read_metrics(tmp_path) == {**scores, "val/pck@0.1": None}
    assert json.loads((tmp_path / workdir.METRICS).read_text())["val/examples"] == 6
    assert evaluate.table({}) == evaluate.table({"error": 1.0})  # no split, nothing to lay out

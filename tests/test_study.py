"""The study of heatmaps and direct regression: which runs it has, and the whole way in small."""

import csv
import importlib.util
import json
import os
import shlex
import subprocess
import sys

import pytest

from heatmap.errors import UserError
from launch import heatmap_vs_regression as study_lib
from launch.jobs import ROOT
from tests.conftest import QUICKLY_COMPILED
from tests.test_readme import commands


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("quick", [False, True])
def test_every_run_of_a_table_differs_from_the_method_in_one_field(tmp_path, quick):
    study = study_lib.plan(tmp_path, 3, quick, {"data.root": "x"})
    own = {method: job.overrides for method, job in study.pairs["own_side"].items()}
    assert [job.columns for job in study.tables["methods"]] == [
        {"model": model, "seed": seed} for seed in range(3) for model in ("heatmap", "regression")
    ]
    for name, count in (("resolution", 3), ("sigma", 4), ("skip", 2)):
        assert len(study.tables[name]) == count
        for job in study.tables[name]:
            changed = {k: v for k, v in job.overrides.items() if own["heatmap"][k] != v}
            ((field, value),) = job.columns.items()
            assert changed == ({} if job.name == "heatmap" else {field: value})
    for job in study.tables["arms"]:
        changed = {k: v for k, v in job.overrides.items() if own[job.columns["model"]][k] != v}
        free = job.columns["data.arms"] == "free"
        assert changed == ({"data.arms": "free"} if free else {})
    for job in study.tables["methods"]:
        changed = {k for k, v in job.overrides.items() if own[job.columns["model"]][k] != v}
        assert changed == ({"seed"} if job.columns["seed"] else set())
        assert job.overrides["data.root"] == "x"


@pytest.mark.parametrize("field", ["targets.sigma", "seed", "data.image_size", "data.arms"])
def test_what_the_study_varies_cannot_be_set(tmp_path, field):
    with pytest.raises(UserError, match=f"set {field} themselves"):
        study_lib.plan(tmp_path, 3, False, {field: "1"})


def test_the_specification_is_what_the_runs_are(tmp_path):
    study = study_lib.plan(tmp_path, 1, False, {})
    sizes = {job.overrides["targets.heatmap_size"] for job in study.tables["resolution"]}
    assert sizes == {"(32,32)", "(64,64)", "(128,128)"}
    assert {job.overrides["targets.sigma"] for job in study.tables["sigma"]} == {1.0, 2.0, 3.0, 4.0}
    assert len(study.jobs) == 10  # no run twice, and those of both methods first
    assert [job.name for job in study.jobs[:2]] == ["heatmap", "regression"]
    assert {arms: list(pair) for arms, pair in study.pairs.items()} == {
        arms: ["heatmap", "regression"] for arms in ("own_side", "free")
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The README's command on a few steps: once with a run that must fail, then mended."""
    out = tmp_path_factory.mktemp("quick") / "study"
    (line,) = (line for line in commands("python launch/heatmap_vs") if "--quick" in line)
    command = [
        sys.executable,
        *(word for word in shlex.split(line)[1:] if not word.startswith("--out")),
        f"--out={out}",
        "--config.train.steps=4",
        "--config.train.eval_every_steps=2",
        f"--config.data.root={tmp_path_factory.mktemp('tfds')}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICKLY_COMPILED}

    def start():
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    (out / "no_skip").mkdir(parents=True)
    (out / "no_skip" / "notes.txt").write_text("in the way")
    failed = start()
    report = (out / "results" / "report.md").read_text()
    (out / "no_skip" / "notes.txt").unlink()
    return out, failed, report, start()


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_rest_is_reported(quick):
    out, failed, report, again = quick
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert f"no_skip failed: see {out / 'no_skip.log'}" in failed.stdout
    assert "9 of 10 runs finished" in failed.stdout
    assert "no\\_skip" in report
    assert again.returncode == 0, again.stdout + again.stderr
    assert "10 runs, 9 of them finished already" in again.stdout


@pytest.mark.slow
def test_the_quick_study_has_every_deliverable(quick):
    out = quick[0]
    results = out / "results"
    logs = json.loads((results / "training_log.json").read_text())
    assert {model: [line["step"] for line in log] for model, log in logs.items()} == {
        "heatmap": [2, 4],
        "regression": [2, 4],
    }
    for method in ("heatmap", "regression"):
        assert any((results / f"{method}_model").rglob("*")), method
        if importlib.util.find_spec("torch"):
            assert (results / f"{method}_model.pth").is_file()
    assert (results / "report.md").read_text().count("](visualizations/") >= 8
    assert len(list((results / "visualizations").glob("*.png"))) >= 8
    assert "soft_argmax, beta 20" in (results / "report.html").read_text()
    assert "has a ceiling below 1" in (results / "free" / "report.md").read_text()
    assert "has a ceiling below 1" not in (results / "report.md").read_text()
    for name, count in (("methods", 2), ("arms", 4), ("resolution", 3), ("sigma", 4), ("skip", 2)):
        lines = rows(out / "ablations" / name / "sweep.csv")
        assert [line["status"] for line in lines] == ["finished"] * count
        assert all(float(line["test/error_px"]) > 0 for line in lines)


@pytest.mark.slow
def test_the_runs_own_decoder_gives_the_runs_own_scores(quick):
    out = quick[0]
    decoders = rows(out / "ablations" / "decoder" / "sweep.csv")
    assert len(decoders) == 4 * len(study_lib.DECODERS)
    (own,) = [d for d in decoders if (d["targets.sigma"], d["decoder"]) == ("2.0", "dark")]
    trained = json.loads((out / "heatmap" / "metrics.json").read_text())
    assert float(own["test/error_px"]) == pytest.approx(trained["test/error_px"], rel=1e-4)

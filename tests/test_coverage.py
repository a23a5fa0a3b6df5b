"""The benchmark of coverage: simulated errors through it, and the whole of it in small."""

import dataclasses
import json
import subprocess
import sys
import types

import numpy as np
import pytest

from benchmarks import coverage
from heatmap import workdir
from heatmap.errors import UserError
from heatmap.inference import labelled, uncertainty
from heatmap.inference.instances import Instances
from heatmap.report.reliability import Bin
from input_pipeline.beetles import POINTS
from launch.jobs import ROOT
from tests.helpers import make_config

LEVELS = uncertainty.LEVELS


def simulated(rng, trays, of_tray=1.0, own=0.3):
    """Predictions that are off alike on a tray, by more where their maps are wider."""
    groups = np.repeat([f"tray {t:03d}" for t in range(trays)], rng.integers(4, 7, trays))
    _, index = np.unique(groups, return_inverse=True)
    n, k = len(groups), POINTS.count
    truth = np.array([[30, 50], [60, 50], [45, 20], [45, 80]]) + rng.uniform(-5, 5, (n, k, 2))
    spread = rng.uniform(0.5, 2, (n, k))
    off = of_tray * rng.normal(size=(trays, k, 2))[index] + own * rng.normal(size=(n, k, 2))
    found = Instances(
        source=np.array([f"{i}" for i in range(n)]),
        frame=np.full(n, -1),
        instance=np.zeros(n, np.int32),
        size=np.full((n, 2), 96),
        box=np.tile([0.0, 0.0, 96.0, 96.0], (n, 1)),
        unit=np.ones((n, 2)),
        points=truth + spread[..., None] * off,
        score=rng.random((n, k)),
        covariance=spread[..., None, None] ** 2 * np.eye(2),
    )
    records = types.SimpleNamespace(keypoints=truth, labelled=np.ones((n, k), bool), groups=groups)
    return labelled.compare(found, records, POINTS)


def test_one_trial_is_what_the_definition_says():
    rng = np.random.default_rng(0)
    cal, test = simulated(rng, 25), simulated(rng, 10)
    found = coverage.trial(cal, test, POINTS, LEVELS).coverage

    def ratios(errors):
        """Errors of the length, in standard deviations of the length by its ends' round maps."""
        variance = errors.found.covariance[:, 2:, 0, 0].sum(axis=1)
        return errors.lines[:, 1] / np.sqrt(variance)

    ours, theirs = ratios(cal), ratios(test)
    for level in LEVELS:
        limits = [
            limit
            for limit in ours
            if sum((ours[cal.groups == g] <= limit).mean() for g in set(cal.groups)) / 26 >= level
        ]
        held = [(theirs[test.groups == g] <= min(limits)).mean() for g in set(test.groups)]
        assert found["length", level] == pytest.approx(np.mean(held))


def test_means_over_pairs_of_sets_lie_where_theory_says():
    rng = np.random.default_rng(1)
    pairs = ((simulated(rng, 24), simulated(rng, 24)) for _ in range(60))
    done = [coverage.trials(cal, test, POINTS, LEVELS) for cal, test in pairs]
    rows = coverage.summarise(done, 24)
    assert [(row["level"], row["interval of"]) for row in rows] == [
        (level, what) for level in LEVELS for what in ("points", "width", "length")
    ]
    assert {row["inside"] for row in rows} == {"yes"}
    assert all(row["SE"] < 0.015 for row in rows)
    # Specimens of five trays that are off alike say little of a sixth.
    last = [row for row in rows if row["level"] == 0.95]
    few = [row[coverage.FROM_FEW] for row in last]
    assert np.max(few) < 0.92 < np.min([row["mean coverage"] for row in last])


def test_summary_by_hand():
    done = [
        {kind: coverage.Trial({("points", 0.9): value}, []) for kind in _kinds()}
        for value in (0.80, 0.82, 0.84, 0.86)
    ]
    (row,) = coverage.summarise(done, 9)
    error = np.std([0.80, 0.82, 0.84, 0.86]) / np.sqrt(3)  # of the mean of four
    assert row["mean coverage"] == pytest.approx(0.83)
    assert row["SE"] == pytest.approx(error)
    assert row["from"] == pytest.approx(0.9 - 2 * error)
    assert row["to"] == pytest.approx(0.9 + 0.1 + 2 * error)
    assert row["inside"] == "NO"
    assert row[coverage.IGNORED] == pytest.approx(0.83)


def _kinds():
    return coverage.GROUPED, coverage.IGNORED, coverage.FROM_FEW


def test_confidence_over_pairs_of_sets():
    """Scores that say nothing: what is stated is the share that is right, on fresh trays too."""
    rng = np.random.default_rng(2)
    pairs = [(simulated(rng, 24, own=1.0), simulated(rng, 24, own=1.0)) for _ in range(40)]
    done = [coverage.trial(*pair, POINTS, LEVELS).confidence for pair in pairs]
    every, *bins = coverage.summarise_confidence(done)
    assert every["confidence stated"] == "0.00–1.00"
    assert every["share of points"] == pytest.approx(1)
    assert sum(row["share of points"] for row in bins) == pytest.approx(1)
    assert abs(every["difference"]) < 3 * every["SE"] < 0.06
    apart = [row["share of points"] * row["difference"] for row in bins]
    assert sum(apart) == pytest.approx(every["difference"])


def test_the_error_of_a_mean_confidence_by_hand():
    """With all bins full it is that of a mean."""
    observed = [0.5, 0.6, 0.9, 0.8]
    done = [[Bin("confidence", 0.0, 1.0, 0.75, value, 0, 0, 9, 1.0)] for value in observed]
    (row,) = coverage.summarise_confidence(done)
    assert row["difference"] == pytest.approx(0.7 - 0.75)
    assert row["SE"] == pytest.approx(np.std(observed, ddof=1) / 2)


def test_too_few_trays_are_refused(tmp_path):
    with pytest.raises(UserError, match="--cal_trays=18 are too few for intervals at 95%"):
        coverage.main([f"--workdir={tmp_path}", "--cal_trays=18"])


def test_a_run_on_other_data_is_refused(tmp_path):
    workdir.write_json(tmp_path / "config.json", dataclasses.asdict(make_config()))
    with pytest.raises(UserError, match=r"trained on stick_figures.*configs/specimens\.py"):
        coverage.main([f"--workdir={tmp_path}"])


@pytest.mark.slow
def test_even_a_network_that_has_hardly_learnt_keeps_its_word(tmp_path):
    """The promise does not rest on how good the predictions are."""
    brief = ["--config.train.epochs=0", "--config.train.steps=20", "--config.eval.sheet_examples=0"]
    train = [sys.executable, "main.py", "--config=configs/specimens.py", *brief]
    subprocess.run([*train, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "benchmarks.coverage", f"--workdir={tmp_path / 'run'}"]
    command += ["--sets=4", "--cal_trays=20", "--test_trays=20", f"--out={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "coverage.json").read_text())["rows"]
    assert len(rows) == 9
    for row in rows:
        assert row["from"] < row["level"] < row["to"]
        assert row["mean coverage"] == pytest.approx(row["level"], abs=0.12)
    stated = json.loads((tmp_path / "confidence.json").read_text())
    assert stated["command"].startswith("python -m benchmarks.coverage ")
    assert stated["rows"][0]["share of points"] == pytest.approx(1)
    for name in ("coverage", "confidence"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000

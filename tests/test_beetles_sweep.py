"""Experiment 004's config and its sweep of twelve runs."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from configs import beetles
from heatmap import config as config_lib
from heatmap.errors import UserError
from heatmap.losses import LOSSES
from launch import beetles_sweep, jobs
from tests.beetles import write_beetlepalooza, write_biorepo, write_hawaii
from tests.helpers import finish

LINES = [f"sigma={s} lr={r}" for s in ("1", "2", "3") for r in ("1e-3", "3e-3", "1e-2", "3e-2")]


def typed(argument=""):
    return config_lib.from_mapping(beetles.get_config(argument).to_dict())


def test_the_config_is_the_documents_recipe():
    config = typed()
    assert (config.targets.sigma, config.optim.learning_rate) == (2.0, 1e-3)
    assert (config.optim.name, config.optim.weight_decay) == ("adamw", 0.1)
    assert (config.train.steps, config.train.max_hours) == (100_000, 12.0)
    assert config.data.image_size == (256, 256)
    assert config.targets.heatmap_size == (64, 64)
    assert LOSSES[config.loss.name].trains == "peak"
    assert config.loss.interchangeable
    assert config.model.freeze_backbone
    assert config.model.backbone == "dinov3_vits16"
    assert config.augment.crop_scale == (0.5, 1.0)
    assert config.augment.rotation_prob == 0.75
    assert config.log.tags == ("exp-004-heatmap",)


def test_the_argument_picks_a_run_with_a_seed_of_its_own():
    configs = [typed(line.replace(" ", ",")) for line in LINES]
    assert [(c.targets.sigma, c.optim.learning_rate) for c in configs] == [
        (s, r) for s in (1.0, 2.0, 3.0) for r in (1e-3, 3e-3, 1e-2, 3e-2)
    ]
    assert len({c.seed for c in configs}) == 12
    assert typed("lr=0.001,sigma=2.0").seed == typed().seed  # the seed is that of the numbers


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [("sigm=2", "did you mean 'sigma'"), ("sigma=two", "'sigma=two' is no number")],
)
def test_a_mistyped_argument_is_refused(argument, sentence):
    with pytest.raises(UserError, match=sentence):
        beetles.get_config(argument)


def test_list_prints_exactly_the_twelve_runs(capsys):
    beetles_sweep.main(["--list"])
    assert capsys.readouterr().out.splitlines() == LINES


def test_overrides_reach_every_run_and_the_length_can_be_cut(tmp_path):
    runs = beetles_sweep.jobs_of(tmp_path, {"train.steps": 5, "data.root": "x"})
    assert len({job.name for job in runs}) == 12
    for job in runs:
        assert "--config.train.steps=5" in job.command
        assert f"--config=configs/beetles.py:{job.name}" in job.command


def test_every_launcher_knows_the_twelve(tmp_path):
    arguments = ["--config=configs/beetles.py", f"--out={tmp_path}", "--config.train.steps=5"]
    _, sweep = jobs.parse(jobs.parser("python launch/slurm.py", None), arguments)
    assert sweep == beetles_sweep.jobs_of(tmp_path, {"train.steps": "5"})


def test_the_picture_shows_the_metric_of_finished_runs(tmp_path):
    runs = beetles_sweep.jobs_of(tmp_path, {})
    blank = tmp_path / "blank.png"
    beetles_sweep.draw(runs, beetles_sweep.PRIMARY, blank)
    for i, job in enumerate(runs[:5]):
        finish(job, **{beetles_sweep.PRIMARY: 0.01 * (i + 1)})
    drawn = tmp_path / "sweep.png"
    beetles_sweep.draw(runs, beetles_sweep.PRIMARY, drawn)
    a, b = (np.asarray(Image.open(path).convert("L"), float) for path in (blank, drawn))
    assert b.std() > a.std()


@pytest.mark.slow
def test_the_whole_sweep_runs_is_interrupted_and_goes_on(tmp_path):
    """On drawn specimens in the three real layouts, with a backbone of two blocks."""
    data = tmp_path / "data"
    for name, write in (
        ("hawaii", write_hawaii),
        ("biorepo", write_biorepo),
        ("beetlepalooza", write_beetlepalooza),
    ):
        (data / name).mkdir(parents=True)
        write(data / name)
    command = [
        sys.executable,
        "-m",
        "launch.beetles_sweep",
        f"--out={tmp_path / 'sweep'}",
        "--steps=3",
        f"--config.data.root={data}",
        "--config.model.backbone=tiny16",
        "--config.model.backbone_init=random",
        "--config.train.batch_size=4",
        "--config.data.image_size=(64,64)",
        "--config.targets.heatmap_size=(16,16)",
        "--config.train.max_hours=1",
        "--config.data.verify=False",
        "--config.eval.sheet_examples=0",
        "--config.log.tensorboard=False",
    ]
    first = subprocess.Popen(command, cwd=jobs.ROOT, env=os.environ)
    table = tmp_path / "sweep" / jobs.SWEEP
    while not (table.is_file() and ",finished," in table.read_text()):
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout
    assert "12 of 12 runs finished" in second.stdout
    assert ", 0 of them finished already" not in second.stdout
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [f"sigma={row['sigma']} lr={row['lr']}" for row in rows] == LINES
    assert all(np.isfinite(float(row[beetles_sweep.PRIMARY])) for row in rows)
    assert (tmp_path / "sweep" / "sweep.png").is_file()

"""Sweeps as data, and the runner of this machine: with real processes, small ones."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from heatmap.errors import UserError
from launch import hyper, jobs, local


def test_sweeps_are_lists_of_overrides():
    sigma, rate = hyper.sweep("targets.sigma", [1.0, 2.0]), hyper.sweep("optim.lr", [1e-3, 1e-2])
    assert hyper.product(sigma, rate, hyper.fixed("seed", 7)) == [
        {"targets.sigma": s, "optim.lr": r, "seed": 7} for s in (1.0, 2.0) for r in (1e-3, 1e-2)
    ]
    assert hyper.zipit(sigma, rate) == [
        {"targets.sigma": 1.0, "optim.lr": 1e-3},
        {"targets.sigma": 2.0, "optim.lr": 1e-2},
    ]
    assert hyper.product() == [{}]


def test_sweeps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="of one length"):
        hyper.zipit(hyper.sweep("a", [1]), hyper.sweep("b", [1, 2]))
    with pytest.raises(ValueError, match="a is set by two"):
        hyper.product(hyper.sweep("a", [1]), hyper.fixed("a", 2))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"targets.sigma": 2.0, "optim.learning_rate": 1e-3}, "sigma=2,learning_rate=0.001"),
        ({"data.name": "a", "model.name": "b"}, "data.name=a,model.name=b"),
        ({"targets.heatmap_size": (64, 64)}, "heatmap_size=_64__64_"),
        ({"data.root": "../x"}, "root=.._x"),
    ],
)
def test_names_are_folders(overrides, name):
    assert hyper.name_of(overrides) == name


class ScriptJob(jobs.Job):
    """A job whose command is a few lines of Python in place of main.py."""

    @property
    def command(self):
        script = textwrap.dedent(self.config)
        return [sys.executable, "-c", script, str(self.workdir), *hyper.flags(self.overrides)]


FINISHES = """
    import json, pathlib, sys
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    starts = folder / "starts"
    starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
    value = float(sys.argv[2].split("=")[1])
    if value == 2 and len(starts.read_text()) == 1:
        sys.exit("out of luck")
    (folder / "metrics.json").write_text(json.dumps({"val/error_px": value / 10}))
"""


def make_jobs(out, script=FINISHES, values=(1, 2, 3)):
    runs = hyper.sweep("a.b", values)
    return [ScriptJob(hyper.name_of(o), script, o, o, out) for o in runs]


def table(out):
    with (out / jobs.SWEEP).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_failed_run_does_not_stop_the_others_and_is_run_again(tmp_path, capsys, parallel):
    assert not local.run(make_jobs(tmp_path), parallel)
    output = capsys.readouterr().out
    assert "b=2 failed" in output
    assert "2 of 3 runs finished" in output
    assert "out of luck" in (tmp_path / "b=2.log").read_text()
    assert [(r["a.b"], r["status"], r["val/error_px"]) for r in table(tmp_path)] == [
        ("1", "finished", "0.1"),
        ("2", "failed", ""),
        ("3", "finished", "0.3"),
    ]
    assert local.run(make_jobs(tmp_path), parallel)
    assert {r["status"] for r in table(tmp_path)} == {"finished"}
    starts = [(tmp_path / f"b={v}" / "starts").read_text() for v in (1, 2, 3)]
    assert starts == ["x", "xx", "x"]  # what had finished was skipped


def test_another_command_is_another_run(tmp_path):
    assert local.run(make_jobs(tmp_path, values=(1,)))
    assert make_jobs(tmp_path, values=(1,))[0].is_finished()
    changed = ScriptJob("b=1", FINISHES, {"a.b": 5}, {}, tmp_path)
    assert not changed.is_finished()


def test_no_run_outlives_a_killed_launcher(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    script = "import os, pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.mkdir()\n"
    script += "(p / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys\nfrom launch import local\n"
            "from tests.test_launch import make_jobs\n"
            "local.run(make_jobs(pathlib.Path(sys.argv[1]), sys.argv[2], (1,)))",
            tmp_path,
            script,
        ],
        cwd=jobs.ROOT,
    )
    pid = tmp_path / "b=1" / "pid"
    while not (pid.is_file() and pid.read_text()):
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    deadline = time.monotonic() + 10
    while is_running(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_command_is_that_of_main(tmp_path):
    sigma, steps = hyper.sweep("targets.sigma", [2.0]), {"train.steps": "5"}
    (job,) = jobs.jobs_of("configs/sigma2.py", sigma, tmp_path, steps)
    assert job.command[1:] == [
        str(jobs.ROOT / "main.py"),
        "--config=configs/sigma2.py",
        f"--workdir={tmp_path / 'sigma=2'}",
        "--config.targets.sigma=2.0",
        "--config.train.steps=5",
    ]


def test_a_config_says_its_own_sweep(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("def get_hyper(hyper):\n    return hyper.sweep('seed', range(3))\n")
    assert jobs.sweep_of(str(config)) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    with pytest.raises(UserError, match="has no get_hyper"):
        jobs.sweep_of(str(jobs.ROOT / "configs" / "common.py"))
    with pytest.raises(UserError, match="There is no config file"):
        jobs.sweep_of("configs/none.py")


@pytest.mark.parametrize("argument", ["--config.x", "config.x=1", "--x=1"])
def test_what_is_no_override_is_refused(argument):
    with pytest.raises(UserError, match="is not of the form"):
        jobs.parse_overrides([argument])

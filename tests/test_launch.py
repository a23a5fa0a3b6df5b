"""Sweeps as data, and the runner of this machine: with real processes, small ones."""

import csv
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from heatmap.errors import UserError
from launch import hyper, jobs, local
from tests.helpers import finish


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
        ({":sigma": "1", ":lr": "1e-3"}, "sigma=1,lr=1e-3"),
    ],
)
def test_names_are_folders(overrides, name):
    assert hyper.name_of(overrides) == name


def test_arguments_of_a_config_can_be_swept(tmp_path):
    runs = hyper.product(hyper.sweep(":sigma", ["1", "2"]), hyper.fixed("seed", 7))
    first, second = jobs.jobs_of("configs/x.py:lr=3", runs, tmp_path, {})
    assert first.config == "configs/x.py:lr=3,sigma=1"
    assert second.config == "configs/x.py:lr=3,sigma=2"
    assert first.columns == {"sigma": "1", "seed": 7}
    assert first.command[-1] == "--config.seed=7"


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


def test_so_many_run_at_a_time(tmp_path):
    script = """
        import json, os, pathlib, sys, time
        folder = pathlib.Path(sys.argv[1])
        active = folder.parent / "active"
        active.mkdir(exist_ok=True)
        (active / folder.name).touch()
        seen, deadline = 1, time.monotonic() + 5
        while seen < 2 and time.monotonic() < deadline:
            seen = max(seen, len(os.listdir(active)))
        time.sleep(0.5)  # a third would have started by now
        seen = max(seen, len(os.listdir(active)))
        (active / folder.name).unlink()
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({"seen": seen}))
    """
    assert local.run(make_jobs(tmp_path, script, (1, 2, 3, 4)), parallel=2)
    assert max(int(row["seen"]) for row in table(tmp_path)) == 2


def test_a_terminal_shows_the_last_line_of_each_run(tmp_path, monkeypatch):
    script = "import time; print('step 7/9', flush=True); time.sleep(1.5); print(1 / 0)"
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        local.run(make_jobs(tmp_path, script, (1,)))
    monkeypatch.undo()
    with os.fdopen(reader, "rb", buffering=0) as shown:
        text = shown.read(100_000).decode()
    assert "\x1b[1A" in text  # drawn over the last one
    lines = re.findall(r"b=1 +(\w+) +(.*?)\r?\n", text)
    assert ("running", "step 7/9") in lines
    assert lines[-1] == ("failed", "ZeroDivisionError: division by zero")


WAITS = """
    import json, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    def leave(*_):
        (folder / "saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    if not (folder / "saved").exists():
        (folder / "ready").touch()
        time.sleep(60)
    (folder / "metrics.json").write_text(json.dumps({"went_on": 1}))
"""


def test_a_launcher_that_is_told_to_stop_lets_its_runs_save(tmp_path):
    launcher = start_launcher(tmp_path, WAITS, parallel=2)
    for name in ("b=1", "b=2"):
        wait_for(tmp_path / name / "ready", launcher)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == 128 + signal.SIGTERM
    assert [row["status"] for row in table(tmp_path)] == ["interrupted"] * 2 + ["waiting"]
    (tmp_path / "b=3").mkdir()
    (tmp_path / "b=3" / "saved").touch()
    assert local.run(make_jobs(tmp_path, WAITS))
    assert {row["went_on"] for row in table(tmp_path)} == {"1"}


def test_a_finished_sweep_may_be_moved(tmp_path):
    assert local.run(make_jobs(tmp_path / "here", values=(1,)))
    (tmp_path / "here").rename(tmp_path / "there")
    assert make_jobs(tmp_path / "there", values=(1,))[0].is_finished()


def test_a_run_whose_scores_are_gone_is_not_finished(tmp_path):
    (job,) = make_jobs(tmp_path, values=(1,))
    assert local.run([job])
    (job.workdir / "metrics.json").unlink()
    assert not job.is_finished()


def test_another_command_is_another_run(tmp_path):
    assert local.run(make_jobs(tmp_path, values=(1,)))
    assert make_jobs(tmp_path, values=(1,))[0].is_finished()
    changed = ScriptJob("b=1", FINISHES, {"a.b": 5}, {}, tmp_path)
    assert not changed.is_finished()


def test_no_run_outlives_a_killed_launcher(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent died")
    script = "import os, pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.mkdir()\n"
    script += "(p / 'tmp').write_text(str(os.getpid())); (p / 'tmp').rename(p / 'pid')\n"
    script += "time.sleep(60)"
    launcher = start_launcher(tmp_path, script)
    pid = wait_for(tmp_path / "b=1" / "pid", launcher)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    deadline = time.monotonic() + 10
    while is_running(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_launcher(out, script, parallel=1):
    """Runs `make_jobs` in another process."""
    code = (
        "import pathlib, sys\nfrom launch import local\nfrom tests.test_launch import make_jobs\n"
        "local.run(make_jobs(pathlib.Path(sys.argv[1]), sys.argv[2]), int(sys.argv[3]))"
    )
    return subprocess.Popen([sys.executable, "-c", code, out, script, str(parallel)], cwd=jobs.ROOT)


def wait_for(path, launcher):
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert launcher.poll() is None
        assert time.monotonic() < deadline, path
        time.sleep(0.05)
    return path


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
    config.write_text("def get_hyper(hyper):\n    return []\n")
    with pytest.raises(UserError, match="returns no run"):
        jobs.sweep_of(str(config))
    config.write_text("def get_hyper(hyper):\n    return hyper.zipit([{}], [])\n")
    with pytest.raises(UserError, match=r"mine.py: zipit needs sweeps of one length"):
        jobs.sweep_of(str(config))
    config.write_text("def get_hyper(hyper):\n    return {}['none']\n")
    with pytest.raises(UserError, match=r"mine.py: KeyError: 'none'"):
        jobs.sweep_of(str(config))
    config.write_text("def get_hyper(hyper):\n    return [1]\n")
    with pytest.raises(UserError, match=r"must return a list of \{field: value\}"):
        jobs.sweep_of(str(config))
    with pytest.raises(UserError, match="is no Python file"):
        jobs.sweep_of(str(jobs.ROOT / "README.md"))


@pytest.mark.parametrize(
    ("runs", "common", "words"),
    [
        ([{"targets.sgima": 1}], {}, r"targets\.sgima is not a config field.*targets\.sigma"),
        ([{"seed": 1}], {"train.stpes": "1"}, r"train\.stpes is not a config field"),
        ([{"targets.sigma": 1}], {"targets.sigma": "9"}, r"set targets\.sigma themselves"),
        ([{"data.root": "a/b"}, {"data.root": "a_b"}], {}, "would share the folder .*root=a_b"),
    ],
)
def test_sweeps_that_cannot_run_are_refused_before_they_start(tmp_path, runs, common, words):
    with pytest.raises(UserError, match=words):
        jobs.jobs_of("configs/sigma2.py", runs, tmp_path, common)


@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_no_run_at_a_time_is_refused(tmp_path, capsys, number):
    with pytest.raises(SystemExit) as stop:
        local.main(["--config=configs/sigma2.py", f"--out={tmp_path}", f"--parallel={number}"])
    assert stop.value.code == 2
    assert f"'{number}' is not a whole number above 0" in capsys.readouterr().err


def test_the_table_can_be_written_without_running(tmp_path, capsys):
    command = ["--config=configs/sigma2.py", f"--out={tmp_path}"]
    sweep = jobs.jobs_of(command[0].split("=")[1], jobs.sweep_of("configs/sigma2.py"), tmp_path, {})
    finish(sweep[1], **{"test/error_px": 0.5})
    local.main([*command, "--table"])
    assert "1 of 3 runs finished" in capsys.readouterr().out
    assert [(row["status"], row["test/error_px"]) for row in table(tmp_path)] == [
        ("waiting", ""),
        ("finished", "0.5"),
        ("waiting", ""),
    ]


def test_a_single_run_can_be_chosen_by_name(tmp_path):
    command = ["--config=configs/sigma2.py", f"--out={tmp_path}"]
    with pytest.raises(UserError, match=r"no run 'sigma=9'; it has sigma=1, sigma=2, sigma=3"):
        local.main([*command, "--only=sigma=9"])
    with pytest.raises(SystemExit) as stop:
        local.main(
            [*command, "--only=sigma=2", "--config.data.root=/none", "--config.data.name=coco"]
        )
    assert stop.value.code == 1
    assert "/none" in (tmp_path / "sigma=2.log").read_text()
    assert not (tmp_path / jobs.SWEEP).exists()


@pytest.mark.parametrize("argument", ["--config.x", "config.x=1", "--x=1"])
def test_what_is_no_override_is_refused(argument):
    with pytest.raises(UserError, match="is not of the form"):
        jobs.parse_overrides([argument])


def test_a_single_run_ends_with_its_launcher(tmp_path):
    """Also where a shell is in between."""
    (job,) = make_jobs(tmp_path, WAITS, (1,))
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def kill_when_ready():
        wait_for(job.workdir / "ready", launcher)
        launcher.kill()
        launcher.wait()

    killer = threading.Thread(target=kill_when_ready)
    killer.start()
    assert local.run_one(job, launcher.pid) == "interrupted"
    killer.join()
    assert (job.workdir / "saved").exists()
    assert local.run_one(job, os.getpid()) == "finished"


@pytest.mark.slow
def test_a_killed_launcher_goes_on_where_it_was(tmp_path, tiny_root):
    """With real runs: the finished one is skipped, the interrupted one resumes."""
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs.sigma2 import get_config\n"
        "def get_hyper(hyper):\n"
        "    return hyper.zipit(hyper.sweep('train.steps', [2, 60]), hyper.sweep('seed', [1, 2]))\n"
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "launch.local",
        f"--config={config}",
        f"--out={out}",
        f"--config.data.root={tiny_root}",
        "--config.data.name=simple_json",
        "--config.data.image_size=(32,32)",
        "--config.targets.heatmap_size=(16,16)",
        "--config.train.batch_size=4",
        "--config.train.epochs=0",
        "--config.train.save_every_steps=1",
        "--config.log.every_steps=1",
        "--config.eval.sheet_examples=0",
        "--config.log.tensorboard=False",
    ]
    first = subprocess.Popen(command, cwd=jobs.ROOT)
    log = out / "steps=60,seed=2.log"
    deadline = time.monotonic() + 600
    while not (log.is_file() and "step 5/60" in log.read_text()):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    second = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout
    assert "2 runs, 1 of them finished already" in second.stdout
    assert int(re.search(r"resumed at step (\d+)", log.read_text()).group(1)) >= 4
    assert {row["status"] for row in table(out)} == {"finished"}

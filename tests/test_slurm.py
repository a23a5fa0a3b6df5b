"""The Slurm runner: the batch script, a queue in front of it, and real runs by submitit."""

import contextlib
import csv
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import pytest

from heatmap.errors import UserError
from launch import jobs, local, slurm
from tests.helpers import finish

EXTRA = "launch/slurm.py needs submitit: pip install -e '.[launch]'"
TINY = [
    "--config.data.name=simple_json",
    "--config.data.image_size=(32,32)",
    "--config.targets.heatmap_size=(16,16)",
    "--config.train.batch_size=4",
    "--config.train.epochs=0",
    "--config.eval.sheet_examples=0",
    "--config.log.tensorboard=False",
]


def write_config(folder: pathlib.Path, sweep: str = "hyper.sweep('targets.sigma', [1.0, 2.0])"):
    """Writes a config with a sweep of its own."""
    path = folder / "mine.py"
    lines = [
        "from configs.sigma2 import get_config",
        "def get_hyper(hyper):",
        f"    return {sweep}",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def table(out):
    with (out / jobs.SWEEP).open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("4:00:00", 240),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("2-0:0:30", 2880.5),
    ],
)
def test_times_are_those_of_slurm(text, expected):
    assert slurm.minutes(text) == expected


@pytest.mark.parametrize("arguments", [["--time=soon"], ["--time=0"], ["--parallel=0"]])
def test_flags_that_make_no_sense_are_refused(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        slurm.main([f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'o'}", *arguments])
    assert stop.value.code == 2
    assert arguments[0].split("=")[1] in capsys.readouterr().err


def test_a_run_needs_more_time_than_to_save(tmp_path):
    with pytest.raises(UserError, match="leave nothing of --time, 2 minutes"):
        slurm.main([f"--config={write_config(tmp_path)}", f"--out={tmp_path}", "--time=2"])


def test_without_the_extra_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[launch\]'"):
        slurm.main([f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'out'}"])


class TestBatchScript:
    @pytest.fixture(autouse=True)
    def extra(self):
        pytest.importorskip("submitit", reason=EXTRA)

    def dry_run(self, tmp_path, capsys, *arguments, sweep="hyper.sweep('seed', range(12))"):
        out = tmp_path / "my sweep"
        config = write_config(tmp_path, sweep)
        slurm.main([f"--config={config}", f"--out={out}", "--dry_run", *arguments])
        assert not out.exists() or not list(out.glob("slurm/*.sh"))
        return capsys.readouterr().out

    def test_it_is_one_array_that_is_queued_again(self, tmp_path, capsys):
        flags = ["--partition=gpu", "--time=1-0", "--gpus=2", "--cpus=6", "--mem=40G"]
        flags += ["--parallel=5", "--grace=60", "--sbatch=account=me", "--sbatch=exclusive"]
        text = self.dry_run(tmp_path, capsys, *flags, "--setup=module load cuda")
        lines = text.splitlines()
        for line in (
            "#SBATCH --array=0-11%5",
            "#SBATCH --partition=gpu",
            "#SBATCH --time=1440",
            "#SBATCH --gpus-per-node=2",
            "#SBATCH --cpus-per-task=6",
            "#SBATCH --mem=40G",
            "#SBATCH --requeue",
            "#SBATCH --signal=USR2@60",
            "#SBATCH --open-mode=append",
            "#SBATCH --account=me",
            "#SBATCH --exclusive",
            "#SBATCH --job-name='my sweep'",
            "module load cuda",
        ):
            assert line in lines, text
        (srun,) = [line for line in lines if line.startswith("srun ")]
        assert "--cpus-per-task=6" in srun
        assert "-m submitit.core._submit" in srun
        assert lines.index("module load cuda") < lines.index(srun)

    def test_a_single_run_is_no_array_and_needs_no_gpu(self, tmp_path, capsys):
        text = self.dry_run(tmp_path, capsys, sweep="hyper.sweep('seed', [1])")
        assert "--array" not in text
        assert "--gpus" not in text
        assert "--partition" not in text

    def test_a_run_on_several_nodes_has_a_process_on_each(self, tmp_path, capsys):
        text = self.dry_run(tmp_path, capsys, "--nodes=4", "--gpus=8", "--parallel=2")
        lines = text.splitlines()
        for line in ("--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--array=0-11%2"):
            assert f"#SBATCH {line}" in lines, text
        (srun,) = [line for line in lines if line.startswith("srun ")]
        assert "--kill-on-bad-exit=1" in srun

    def test_finished_runs_are_left_out(self, tmp_path, capsys):
        sweep = "hyper.sweep('seed', range(12))"
        config = write_config(tmp_path, sweep)
        runs = jobs.sweep_of(str(config))
        for job in jobs.jobs_of(str(config), runs, tmp_path / "my sweep", {})[:3]:
            finish(job, **{"test/error_px": 0.5})
        assert "#SBATCH --array=0-8%9" in self.dry_run(tmp_path, capsys)


def test_several_nodes_are_not_played_without_slurm(tmp_path):
    command = [f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="--nodes needs a cluster"):
        slurm.main([*command, "--cluster=local", "--nodes=2"])


@pytest.mark.slow
def test_the_tasks_of_a_run_train_one_model(tmp_path, tiny_root):
    """As `srun` starts them on two nodes: the same task, with another number."""
    flags = ["data.root", "train.steps"], [str(tiny_root), "2"]
    settings = dict(zip(*flags, strict=True)) | jobs.parse_overrides(TINY)
    out = tmp_path / "out"
    (job,) = jobs.jobs_of(str(write_config(tmp_path)), [{"seed": 1}], out, settings)
    (tmp_path / "task").write_bytes(pickle.dumps(slurm.Task(job)))
    start = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))()"
    numbers = {"NTASKS": 2, "STEP_NUM_TASKS": 2, "STEP_NUM_NODES": 2, "LOCALID": 0}
    numbers["JOB_ID"] = os.getpid()  # of which JAX makes its port
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", start, str(tmp_path / "task")],
            cwd=jobs.ROOT,
            env={
                **os.environ,
                "SLURM_STEP_NODELIST": "localhost",
                "JAX_NUM_CPU_DEVICES": "1",
                **{f"SLURM_{name}": str(value) for name, value in numbers.items()},
                "SLURM_PROCID": str(rank),
            },
        )
        for rank in (0, 1)
    ]
    assert [task.wait(timeout=500) for task in tasks] == [0, 0], job.log.read_text()
    assert job.is_finished()
    assert "devices: 2 × cpu, of 2 processes\n" in job.log.read_text()
    assert job.log_of(1).is_file()


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm's commands, as far as a login node sees them: nothing starts, states are a file."""
    pytest.importorskip("submitit", reason=EXTRA)
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {
        "srun": "exit 1",
        "sbatch": f'cp "$1" {folder}/script && echo x >> {folder}/calls && cat {folder}/answer',
        "squeue": f"cat {folder}/states",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "states").touch()
    (folder / "answer").write_text("Submitted batch job 7\n")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_the_queue_is_known_to_later_commands(tmp_path, cluster, capsys):
    out = tmp_path / "out"
    command = [f"--config={write_config(tmp_path)}", f"--out={out}"]
    slurm.main([*command, "--dry_run"])
    expected = capsys.readouterr().out
    (cluster / "states").write_text("7_0 PENDING\n7_1 PENDING\n8 RUNNING\n")
    slurm.main(command)
    assert "submitted as job 7" in capsys.readouterr().out
    assert (cluster / "script").read_text().strip() == expected.strip()
    assert json.loads((out / slurm.FOLDER / slurm.QUEUE).read_text()) == {
        "sigma=1": "7_0",
        "sigma=2": "7_1",
    }
    assert [row["status"] for row in table(out).values()] == ["queued", "queued"]

    slurm.main(command)  # both are in the queue: there is nothing to submit
    assert "0 of 2 runs submitted, 2 are finished or queued" in capsys.readouterr().out
    assert (cluster / "calls").read_text() == "x\n"

    (cluster / "states").write_text("7_1 RUNNING\n")
    slurm.main([*command, "--table"])
    assert [row["status"] for row in table(out).values()] == ["failed", "running"]
    assert "sigma=1 failed: see" in capsys.readouterr().out

    (cluster / "answer").write_text("Submitted batch job 9\n")
    slurm.main(command)  # what left the queue without finishing is submitted again
    assert "--array" not in (cluster / "script").read_text()
    assert json.loads((out / slurm.FOLDER / slurm.QUEUE).read_text())["sigma=1"] == "9"


def test_waiting_ends_when_nothing_is_queued(tmp_path, cluster, capsys, monkeypatch):
    monkeypatch.setitem(slurm._POLL_SECONDS, "slurm", 0.01)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        slurm.main([f"--config={write_config(tmp_path)}", f"--out={out}", "--wait"])
    assert stop.value.code == 1
    assert "0 of 2 runs finished" in capsys.readouterr().out
    assert [row["status"] for row in table(out).values()] == ["failed", "failed"]


def test_what_sbatch_says_is_the_users_to_read(tmp_path, cluster):
    (cluster / "sbatch").write_text("#!/bin/sh\necho 'invalid partition: gpuu' >&2; exit 1\n")
    with pytest.raises(UserError, match=r"refused the sweep.*invalid partition: gpuu"):
        slurm.main([f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'out'}"])


def test_no_slurm_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason=EXTRA)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="There is no Slurm here"):
        slurm.main([f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'out'}"])


def launch(*arguments: str, script: str = "slurm.py", **options):
    """Starts a launcher as a user does."""
    return subprocess.Popen(
        [sys.executable, f"launch/{script}", *arguments],
        cwd=jobs.ROOT,
        env={**os.environ, "PYTHONPATH": f"{jobs.ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
def test_a_sweep_runs_to_its_end_and_equals_the_local_one(tmp_path, tiny_root):
    pytest.importorskip("submitit", reason=EXTRA)
    command = [f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'cluster'}", *TINY]
    command += [f"--config.data.root={tiny_root}", "--config.train.steps=2"]
    first = launch(*command, "--cluster=local")
    output, errors = first.communicate(timeout=600)
    assert first.returncode == 0, output + errors
    assert "2 of 2 runs finished" in output
    second = launch(*command, "--cluster=local")
    output, errors = second.communicate(timeout=600)
    assert "0 of 2 runs submitted" in output, output + errors
    local.main([a.replace(str(tmp_path / "cluster"), str(tmp_path / "local")) for a in command])
    assert (tmp_path / "cluster" / jobs.SWEEP).read_text() == (
        tmp_path / "local" / jobs.SWEEP
    ).read_text()
    layout = [
        {str(path.relative_to(out)) for path in [*out.iterdir(), *out.glob("*/*")]}
        for out in (tmp_path / "cluster", tmp_path / "local")
    ]
    assert layout[1] == {name for name in layout[0] if not name.startswith(slurm.FOLDER)}
    assert {"sweep.csv", "sigma=1/metrics.json", "sigma=1.log", "sigma=1.done"} <= layout[1]


@pytest.mark.slow
def test_a_run_that_is_preempted_saves_and_goes_on(tmp_path, tiny_root):
    """Slurm's warning is a signal, which all processes of the job receive."""
    pytest.importorskip("submitit", reason=EXTRA)
    if sys.platform != "linux":
        pytest.skip("processes are looked up as Linux shows them")
    out = tmp_path / "out"
    steps = ["--config.train.steps=60", "--config.train.save_every_steps=1000"]
    config = write_config(tmp_path, "hyper.sweep('seed', [1])")
    running = launch(
        f"--config={config}",
        f"--out={out}",
        *TINY,
        *steps,
        "--config.train.eval_every_steps=1000",
        "--config.log.every_steps=1",
        f"--config.data.root={tiny_root}",
        "--cluster=local",
    )
    log = out / "seed=1.log"
    deadline = time.monotonic() + 500
    while not (log.is_file() and "step 5/60" in log.read_text()):
        assert time.monotonic() < deadline
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    for pid in [*processes("main.py", out), *processes("submitit.core._submit", out)]:
        os.kill(pid, signal.SIGUSR2)
    output, errors = running.communicate(timeout=900)
    assert running.returncode == 0, output + errors
    text = log.read_text()
    stopped = int(text.split("stopped at step ")[1].split(";")[0])
    assert 5 <= stopped < 60
    assert f"resumed at step {stopped}" in text
    assert [row["status"] for row in table(out).values()] == ["finished"]


def processes(*words):
    """The processes whose command line has all of these words."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = path.read_text().replace("\0", " ")
            if all(str(word) in text for word in words):
                found.append(int(path.parent.name))
    assert found, words
    return found

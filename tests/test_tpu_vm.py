"""launch/tpu_vm.sh, with a gcloud that runs the worker's commands in a folder of this machine."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

from launch.jobs import ROOT

SCRIPT = ROOT / "launch" / "tpu_vm.sh"
ASKED = ["--name=vm", "--zone=us-central1-a", "--config=configs/sigma2.py", "--workdir=runs/t"]
# `describe` fails until `create` has made the worker's folder; `scp` copies, `ssh` runs there with
# a Python that only writes down what it was asked to do.
GCLOUD = """#!/bin/bash
set -eu
echo "$*" >> "$WORKER.calls"
shift 3
case $1 in
  describe) [ -d "$WORKER" ] ;;
  create) mkdir "$WORKER" ;;
  scp)
    [ "$2" != --recurse ] || shift
    from=${2/#vm:/$WORKER/} to=${3/#vm:/$WORKER/}
    cp -r "$from" "$to" ;;
  ssh)
    for argument; do case $argument in --command=*) command=${argument#*=} ;; esac; done
    cd "$WORKER" && PATH="$WORKER.bin:$PATH" bash -c "$command" ;;
  delete) rm -r "$WORKER" ;;
esac
"""
# Stands for uv, which makes an environment whose Python trains.
PYTHON3 = """#!/bin/bash
echo "python3 $*" >> "$WORKER.calls"
if [ "$3" = venv ]; then
  mkdir -p .venv/bin && cp "$WORKER.python" .venv/bin/python
fi
"""
TRAINS = """#!/bin/bash
printf '%s\\n' "$@" > "$WORKER.arguments"
mkdir -p runs/t && cat runs/t/steps 2>/dev/null > "$WORKER.found" || true
echo trained >> runs/t/steps
exit ${FAILS:-0}
"""


def run(*arguments: str, script: pathlib.Path = SCRIPT, **environment: str):
    return subprocess.run(
        ["bash", str(script), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_explains_every_flag():
    result = run("--help")
    assert result.returncode == 0
    cases = [line.strip() for line in SCRIPT.read_text().splitlines() if line.startswith("    --")]
    flags = {line.split(")")[0].split(" ")[0].split("=")[0] for line in cases} - {"--config.*"}
    assert len(flags) > 8
    for flag in flags:
        assert flag in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (ASKED[1:], "--name=VM"),
        ([ASKED[0], *ASKED[2:]], "--zone="),
        ([*ASKED[:2], ASKED[3]], "--config="),
        (ASKED[:3], "--workdir="),
        ([*ASKED, "--out=runs/sweep"], "not both"),
        ([*ASKED, "--stpes=3"], "--stpes=3"),
        ([*ASKED[:3], "--workdir=/home/me/run"], "inside the project"),
        ([*ASKED[:3], "--out=/home/me/sweep"], "inside the project"),
    ],
)
def test_a_mistyped_command_is_one_sentence(arguments, words):
    result = run(*arguments, "--dry_run")
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


def test_the_dry_run_prints_commands_and_runs_none(tmp_path):
    gcloud = tmp_path / "gcloud"
    gcloud.write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\n")
    gcloud.chmod(0o755)
    size = "--config.data.image_size=(64, 64)"
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = run(*ASKED, size, "--type=v6e-8", "--spot", "--delete", "--dry_run", PATH=path)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "called").exists()
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    calls = [line for line in lines if line[0] == "gcloud"]
    assert all(call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for call in calls)
    assert all("--zone=us-central1-a" in call for call in calls)
    assert [call[4] for call in calls] == ["create", "scp", "ssh", "ssh", "scp", "delete"]
    create, copy, install, train, fetch, _ = calls
    assert {"--accelerator-type=v6e-8", "--spot"} <= set(create)
    assert {"--worker=all"} <= set(copy) & set(install) & set(train)
    assert "'jax[tpu]'" in install[-2]
    command = train[-2].removeprefix("--command=").split("&&")[1]
    assert shlex.split(command) == [
        ".venv/bin/python",
        "main.py",
        "--config=configs/sigma2.py",
        size,
        "--workdir=runs/t",
    ]
    assert "vm:heatmap/runs/t" in fetch


@pytest.fixture
def project(tmp_path):
    """A copy of the script in a small repository, and a gcloud for it."""
    project = tmp_path / "project"
    (project / "launch").mkdir(parents=True)
    shutil.copy(SCRIPT, project / "launch")
    (project / "main.py").write_text("tracked\n")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    (project / "main.py").write_text("changed\n")
    (project / "secret").write_text("not tracked\n")
    for name, text in (("bin/gcloud", GCLOUD), ("vm.bin/python3", PYTHON3), ("vm.python", TRAINS)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return project


def train(project, *arguments, results="--workdir=runs/t", **environment):
    return run(
        *ASKED[:3],
        results,
        *arguments,
        script=project / "launch" / "tpu_vm.sh",
        PATH=f"{project.parent / 'bin'}:{os.environ['PATH']}",
        WORKER=str(project.parent / "vm"),
        **environment,
    )


def test_it_trains_and_brings_the_workdir_home(project):
    worker = project.parent / "vm"
    result = train(project, "--config.seed=3")
    assert result.returncode == 0, result.stderr
    assert (worker / "heatmap" / "main.py").read_text() == "changed\n"
    assert not (worker / "heatmap" / "secret").exists()
    assert (project.parent / "vm.arguments").read_text().split() == [
        "main.py",
        "--config=configs/sigma2.py",
        "--config.seed=3",
        "--workdir=runs/t",
    ]
    assert (project / "runs" / "t" / "steps").read_text() == "trained\n"

    # The same VM goes on with what it has.
    assert train(project).returncode == 0
    assert (project / "runs" / "t" / "steps").read_text() == "trained\n" * 2
    assert (project.parent / "vm.calls").read_text().count("create") == 1

    # A new one, after a preemption, gets what was fetched.
    shutil.rmtree(worker)
    assert train(project, "--delete").returncode == 0
    assert (project.parent / "vm.found").read_text() == "trained\n" * 2
    assert (project / "runs" / "t" / "steps").read_text() == "trained\n" * 3
    assert not worker.exists()


def test_a_sweep_is_the_local_launchers(project):
    assert train(project, "--config.seed=3", results="--out=runs/t").returncode == 0
    assert (project.parent / "vm.arguments").read_text().split() == [
        "-m",
        "launch.local",
        "--config=configs/sigma2.py",
        "--config.seed=3",
        "--out=runs/t",
    ]
    assert (project / "runs" / "t" / "steps").read_text() == "trained\n"


def test_a_failed_run_is_fetched_too_and_its_exit_code_kept(project):
    assert train(project, FAILS="7").returncode == 7
    assert (project / "runs" / "t" / "steps").is_file()


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not on this machine")
    result = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout

"""The XManager runner: a real `xmanager launch` on this machine, and clouds as far as the door."""

import argparse
import asyncio
import csv
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from heatmap.errors import UserError
from launch import jobs, local, xm
from tests.helpers import finish
from tests.test_slurm import TINY, write_config

EXTRA = "launch/xm.py needs XManager: pip install -e '.[launch]'"
HAS_XMANAGER = importlib.util.find_spec("xmanager") is not None
needs_xmanager = pytest.mark.skipif(not HAS_XMANAGER, reason=EXTRA)


def test_without_the_extra_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xmanager", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[launch\]'"):
        xm.launch([f"--config={write_config(tmp_path)}", f"--out={tmp_path / 'out'}"])


def test_our_flags_follow_the_script_and_a_double_dash():
    command = ["/bin/xmanager", "launch", "launch/xm.py", "--", "--config=a", "--out=b"]
    assert xm._own(command) == ["--config=a", "--out=b"]
    assert xm._own([a for a in command if a != "--"]) == ["--config=a", "--out=b"]


def cloud(**settings):
    values = {
        "executor": "vertex",
        "accelerator": "a100=2",
        "cpus": 12,
        "ram": 85,
        "image": "",
        "config": "configs/sigma2.py",
        "out": pathlib.Path("/gcs/bucket/sweep"),
    }
    return argparse.Namespace(**{**values, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"out": pathlib.Path("runs/sweep")}, "say /gcs/BUCKET/"),
        ({"out": pathlib.Path("runs/sweep"), "executor": "kubernetes"}, "is of this machine"),
        ({"config": "/home/me/mine.py"}, "would not be in the container"),
        ({"config": "../mine.py"}, "would not be in the container"),
    ],
)
def test_what_a_container_cannot_reach_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        xm.check_reach(cloud(**settings))


def test_the_image_has_what_a_run_needs(tmp_path):
    """And only that: a sweep's single run starts from the copy, with nothing else in reach."""
    copy = xm.stage(tmp_path)
    assert not list(copy.rglob("__pycache__"))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-m", "launch.local", "--config=configs/sigma2.py", "--out=o", "--only=x"],
        cwd=copy,
        env={**environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if "site-pack" in p)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "has no run 'x'; it has sigma=1, sigma=2, sigma=3" in result.stderr


@needs_xmanager
class TestClouds:
    """Executors, images and work units, without a cloud to send them to."""

    def test_vertex_gets_the_accelerator_that_was_asked_for(self):
        from xmanager import xm as xmanager
        from xmanager.cloud import vertex

        executor = xm.executor_of(cloud())
        assert executor.requirements.accelerator == xmanager.ResourceType.A100
        job = xmanager.Job(executable=None, executor=executor)
        spec = vertex.get_machine_spec(job)
        assert (spec["machine_type"], spec["accelerator_count"]) == ("a2-highgpu-2g", 2)

    def test_vertex_has_tpus(self):
        from xmanager import xm as xmanager
        from xmanager.cloud import vertex

        job = xmanager.Job(executable=None, executor=xm.executor_of(cloud(accelerator="tpu_v3=8")))
        spec = vertex.get_machine_spec(job)
        assert (spec["machine_type"], spec["accelerator_count"]) == ("cloud-tpu", 8)

    def test_vertex_without_an_accelerator_gets_a_machine_of_that_size(self):
        from xmanager import xm as xmanager
        from xmanager.cloud import vertex

        executor = xm.executor_of(cloud(accelerator=None, cpus=8, ram=32))
        spec = vertex.get_machine_spec(xmanager.Job(executable=None, executor=executor))
        assert "accelerator_type" not in spec
        assert spec["machine_type"].endswith("-8")

    def test_kubernetes_gets_limits_and_a_node_selector(self):
        from xmanager.cloud import kubernetes

        executor = xm.executor_of(cloud(executor="kubernetes", accelerator="t4=1", cpus=4, ram=16))
        limits = kubernetes.requirements_from_executor(executor).limits
        assert limits == {"cpu": "4", "memory": str(16 * 2**30), "nvidia.com/gpu": "1"}
        selector = kubernetes.node_selector_from_executor(executor)
        assert selector == {"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}

    @pytest.mark.parametrize(
        ("accelerator", "words"), [("a1000=1", "unknown to XManager"), ("tpu_v5e=4", "tpu_vm.sh")]
    )
    def test_an_accelerator_that_is_not_to_be_had_is_refused(self, accelerator, words):
        with pytest.raises(UserError, match=words):
            xm.executor_of(cloud(accelerator=accelerator))

    @pytest.mark.parametrize(
        ("accelerator", "jax"), [("a100=1", "jax[cuda12]"), ("tpu_v3=8", "jax[tpu]"), (None, None)]
    )
    def test_the_image_is_described(self, tmp_path, accelerator, jax):
        from xmanager import xm as xmanager
        from xmanager.cloud import build_image

        project = tmp_path / "heatmap"
        described = xm.container(cloud(accelerator=accelerator, image="host/me:1"), project)
        assert described.executor_spec.push_image_tag == "host/me:1"
        spec = described.executable_spec
        path = build_image._create_dockerfile(spec, xmanager.SequentialArgs(), {})
        lines = pathlib.Path(path).read_text().splitlines()
        assert "COPY heatmap/ /heatmap" in lines
        assert "RUN pip install --no-cache-dir -e ." in lines
        assert [line for line in lines if "jax[" in line] == (
            [f"RUN pip install --no-cache-dir -U '{jax}<0.13'"] if jax else []
        )
        entrypoint = pathlib.Path(build_image._create_entrypoint(spec)).read_text()
        assert entrypoint.rstrip().endswith('exec python -m launch.local "$@"')

    def test_each_run_is_a_work_unit_and_finished_ones_are_left_out(self, tmp_path):
        from xmanager import xm_local, xm_mock

        overrides = ["--config.train.steps=5"]
        options = cloud()
        runs = jobs.sweep_of(str(jobs.ROOT / options.config))
        sweep = jobs.jobs_of(options.config, runs, tmp_path, {"train.steps": "5"})
        finish(sweep[1], **{"test/error_px": 0.5})
        commands = [xm.command_of(job, options, overrides) for job in sweep]

        async def submit():
            async with xm_mock.MockExperiment() as experiment:
                await xm.submit(experiment, sweep, commands, options)
                return experiment

        experiment = asyncio.run(submit())
        assert len(experiment.launched_jobs) == 2
        for job, name in zip(experiment.launched_jobs, ("sigma=1", "sigma=3"), strict=True):
            assert isinstance(job.executor, xm_local.Vertex)
            assert job.args.to_list(str) == [
                "--config=configs/sigma2.py",
                f"--out={tmp_path}",
                f"--only={name}",
                "--config.train.steps=5",
            ]

    def test_no_access_is_one_sentence(self, tmp_path):
        from google.auth.exceptions import DefaultCredentialsError
        from xmanager import xm_mock

        class Refused(xm_mock.MockExperiment):
            @classmethod
            def package(cls, _):
                raise DefaultCredentialsError("no credentials were found")

        async def submit():
            async with Refused() as experiment:
                await xm.submit(experiment, [], [], cloud())

        with pytest.raises(UserError, match=r"No access .*no credentials were found.*gcloud auth"):
            asyncio.run(submit())


def xmanager_launch(home: pathlib.Path, *arguments: str):
    """Runs the launcher as a user does; its database is kept in the home folder."""
    program = shutil.which("xmanager", path=pathlib.Path(sys.executable).parent)
    assert program
    return subprocess.run(
        [program, "launch", "launch/xm.py", "--", *arguments],
        cwd=jobs.ROOT,
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(jobs.ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@needs_xmanager
def test_mistakes_are_one_sentence(tmp_path):
    config = write_config(tmp_path)
    for argument, words in (
        ("--config.train.stpes=1", "train.stpes is not a config field"),
        ("--only", "--only"),
    ):
        result = xmanager_launch(tmp_path, f"--config={config}", f"--out={tmp_path}/o", argument)
        assert result.returncode == 2, result.stderr
        assert words in result.stderr
        assert "Traceback" not in result.stderr


@needs_xmanager
def test_help_is_ours(tmp_path):
    result = xmanager_launch(tmp_path, "--help")
    assert result.returncode == 0, result.stderr
    assert "--accelerator" in result.stdout


@needs_xmanager
@pytest.mark.slow
def test_a_sweep_runs_here_and_equals_the_local_one(tmp_path, tiny_root):
    """Two runs, of which one cannot; then again, with what it was missing."""
    config = write_config(tmp_path, "hyper.sweep('data.root', ['DATA', 'NONE'])")
    text = config.read_text().replace("DATA", str(tiny_root)).replace("NONE", str(tmp_path / "no"))
    config.write_text(text)
    out = tmp_path / "xm"
    command = [f"--config={config}", *TINY, "--config.train.steps=2"]
    first = xmanager_launch(tmp_path, *command, f"--out={out}", "--parallel=2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 of 2 runs finished" in first.stdout
    assert "Traceback" not in first.stderr
    with (out / jobs.SWEEP).open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "failed"]

    shutil.copytree(tiny_root, tmp_path / "no")
    second = xmanager_launch(tmp_path, *command, f"--out={out}")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "2 runs, 1 of them finished already" in second.stdout
    assert "2 of 2 runs finished" in second.stdout

    local.main([*command, f"--out={tmp_path / 'local'}", "--parallel=2"])
    tables = [(folder / jobs.SWEEP).read_text() for folder in (out, tmp_path / "local")]
    assert tables[0] == tables[1]

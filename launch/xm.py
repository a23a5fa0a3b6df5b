"""Runs a sweep with XManager: on this machine, or in containers on Vertex AI or Kubernetes.

    xmanager launch launch/xm.py -- --config=configs/sigma2.py --out=runs/sweep --parallel=2
    xmanager launch launch/xm.py -- --config=configs/sigma2.py --out=/gcs/BUCKET/sweep \\
        --executor=vertex --accelerator=a100=1

The config's `get_hyper(hyper)` says which runs there are, and each is a work unit. On this machine
neither Docker nor a cloud is needed; the command stays until the end, as launch/local.py does, and
writes the same folders and the same sweep.csv.

In a cloud each run is `python -m launch.local --only=NAME` in a container that XManager builds, and
a run that is started again goes on from its checkpoint. --out must be a folder that outlives the
container: /gcs/BUCKET/… on Vertex AI, which mounts every bucket there; on Kubernetes, to whose pods
XManager gives no volume, what the cluster mounts by itself. The command returns once the runs are
submitted. Where --out, or a copy of it, can be read, --table writes sweep.csv.
"""

import argparse
import asyncio
import contextlib
import importlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags

from heatmap import command_line
from heatmap.errors import UserError, guard
from launch import jobs as jobs_lib
from launch.board import Board, report
from launch.jobs import ROOT, Job, statuses, write_table

BUCKETS = "/gcs/"  # where Vertex AI mounts them
# What a run needs of the project; not data, runs or environments beside it.
PROJECT = ("main.py", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("configs", "heatmap", "input_pipeline", "launch")
_PYTHON = "python:3.12-slim"


def command_of(job: Job, options: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    """Spells the command of a single run, without the Python that runs it.

    Args:
      job: the run.
      options: of the launcher's command line.
      rest: the overrides on it.
    """
    return [
        "-m",
        "launch.local",
        f"--config={options.config}",
        f"--out={job.out}",
        f"--only={job.name}",
        *rest,
    ]


async def run_here(
    experiment: Any, jobs: Sequence[Job], commands: Sequence[list[str]], parallel: int
) -> bool:
    """Runs what is not finished yet on this machine, and writes sweep.csv after each run.

    Args:
      experiment: of XManager, entered.
      jobs: of one sweep.
      commands: of each job, as `command_of`.
      parallel: how many run at a time; left to itself XManager would start all at once.

    Returns:
      Whether all have finished.
    """
    from xmanager import xm, xm_local

    status = statuses(jobs)
    board = Board(jobs, status)
    write_table(jobs, status)
    places = asyncio.Semaphore(parallel)
    binary = xm.binary(path=sys.executable, executor_spec=xm_local.Local.Spec())
    [executable] = experiment.package([binary])

    async def run(job: Job, command: list[str]) -> None:
        async with places:
            executor = xm_local.Local(experimental_stream_output=False)  # it goes to job.log
            # XManager starts a shell that starts the run, and outlives a killed XManager.
            arguments = [*command, f"--launcher={os.getpid()}"]
            unit = await experiment.add(
                xm.Job(executable=executable, executor=executor, args=arguments, name=job.name)
            )
            status[job.name] = "running"
            board.changed(job.name)
            # The other runs go on; this one's files say what became of it.
            with contextlib.suppress(xm.ExperimentUnitError):
                await unit.wait_until_complete()
            status[job.name] = "finished" if job.is_finished() else "failed"
            write_table(jobs, status)
            board.changed(job.name)

    waiting = [pair for pair in zip(jobs, commands, strict=True) if not pair[0].is_finished()]
    everything = asyncio.gather(*(run(job, command) for job, command in waiting))
    while not everything.done():
        board.refresh()
        await asyncio.wait([everything], timeout=0.5)
    await everything
    return board.summarise()


async def submit(
    experiment: Any, jobs: Sequence[Job], commands: Sequence[list[str]], options: argparse.Namespace
) -> None:
    """Submits what is not known to be finished to a cloud, all runs in one image.

    Args:
      experiment: of XManager, entered.
      jobs: of one sweep.
      commands: of each job, as `command_of`.
      options: executor, accelerator, cpus, ram and image.

    Raises:
      UserError: if there is no access to the cloud.
    """
    from google.auth.exceptions import GoogleAuthError
    from kubernetes.config import ConfigException
    from xmanager import xm

    executor = executor_of(options)
    try:
        with tempfile.TemporaryDirectory() as folder:
            project = stage(pathlib.Path(folder))
            [executable] = experiment.package([container(options, project)])
        for job, command in zip(jobs, commands, strict=True):
            if not job.is_finished():
                _, _, *arguments = command
                await experiment.add(
                    xm.Job(executable=executable, executor=executor, args=arguments)
                )
                print(f"{job.name}: submitted", flush=True)
    except (GoogleAuthError, ConfigException) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"No access to the cloud ({reason}): gcloud auth application-default login, and for "
            "Kubernetes, gcloud container clusters get-credentials."
        ) from error


def executor_of(options: argparse.Namespace) -> Any:
    """Builds the executor of a cloud.

    Raises:
      UserError: for an accelerator that XManager does not know.
    """
    from xmanager import xm, xm_local

    resources = {"cpu": options.cpus * xm.vCPU, "ram": options.ram * xm.GiB}
    if options.accelerator:
        name, _, amount = options.accelerator.partition("=")
        known = [kind.name.lower() for kind in (*xm.GpuType, *xm.TpuType)]
        if name.lower() not in known:
            raise UserError(
                f"--accelerator={options.accelerator} is unknown to XManager; say one of "
                f"{', '.join(sorted(known))}, with a number, as in a100=1."
            )
        vertex_tpus = ("tpu_v2", "tpu_v3")
        if options.executor == "vertex" and name.startswith("tpu") and name not in vertex_tpus:
            raise UserError(
                f"XManager's Vertex executor starts {' and '.join(vertex_tpus)} only, not {name}; "
                "launch/tpu_vm.sh starts others."
            )
        resources[name] = int(amount) if amount.isdecimal() else amount or 1
    requirements = xm.JobRequirements(**resources)
    kind = {"vertex": xm_local.Vertex, "kubernetes": xm_local.Kubernetes}[options.executor]
    return kind(requirements=requirements)


def container(options: argparse.Namespace, project: pathlib.Path) -> Any:
    """Describes the image in which the runs take place, to be built by XManager.

    Args:
      options: executor, accelerator and image.
      project: what to copy into it, from `stage`.
    """
    from xmanager import xm, xm_local

    accelerator = options.accelerator or ""
    kind = "tpu" if accelerator.startswith("tpu") else "cuda12"
    jax = [f"RUN pip install --no-cache-dir -U 'jax[{kind}]<0.13'"] if accelerator else []
    spec = {"vertex": xm_local.Vertex.Spec, "kubernetes": xm_local.Kubernetes.Spec}
    return xm.python_container(
        executor_spec=spec[options.executor](push_image_tag=options.image or None),
        path=str(project),
        base_image=_PYTHON,
        docker_instructions=[
            f"COPY {project.name}/ /{project.name}",
            f"WORKDIR /{project.name}",
            "RUN pip install --no-cache-dir -e .",
            *jax,
        ],
        # Python in place of the shell, so that it is told when the container has to go.
        entrypoint=xm.CommandList(['exec python -m launch.local "$@"']),
    )


def stage(folder: pathlib.Path) -> pathlib.Path:
    """Copies what a run needs of the project into a folder, and returns the copy."""
    copy = folder / "heatmap"
    copy.mkdir()
    for name in PROJECT:
        shutil.copy(ROOT / name, copy / name)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def check_reach(options: argparse.Namespace) -> None:
    """Finds that a container can reach what a cloud's runs need.

    Raises:
      UserError: for a config outside the image, or a folder that would be lost with it.
    """
    config = pathlib.PurePosixPath(options.config.split(":")[0])
    if config.is_absolute() or ".." in config.parts or config.parts[0] not in PACKAGES:
        raise UserError(f"{config} would not be in the container; put the config into configs/.")
    if options.executor == "vertex" and not str(options.out).startswith(BUCKETS):
        raise UserError(f"--out={options.out} would be lost; on Vertex AI say {BUCKETS}BUCKET/….")
    if not options.out.is_absolute():
        raise UserError(f"--out={options.out} is of this machine; say a path in the container.")


def launch(arguments: Sequence[str]) -> None:
    """Parses the command line and runs or submits the sweep; exit code 1 if a run failed."""
    flags = jobs_lib.parser("python launch/xm.py", __doc__)
    flags.add_argument("--executor", choices=["local", "vertex", "kubernetes"], default="local")
    flags.add_argument("--accelerator", metavar="KIND=N", help="e.g. a100=1, tpu_v3=8")
    flags.add_argument("--cpus", type=jobs_lib.positive, default=8, help="of each container")
    flags.add_argument("--ram", type=jobs_lib.positive, default=32, help="of each container, GiB")
    flags.add_argument("--image", help="where to push the image, if not to the project's registry")
    # XManager's own flags, which absl has read.
    given = [argument for argument in arguments if not argument.startswith("--xm_")]
    options, jobs = jobs_lib.parse(flags, given)
    if options.table:
        report(jobs, statuses(jobs))
        return
    if options.executor != "local":
        check_reach(options)
    try:
        from xmanager import xm_local
    except ImportError as error:
        raise UserError(
            "launch/xm.py needs XManager: pip install -e '.[launch]' in the project's folder."
        ) from error
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["launch/xm.py", *(a for a in arguments if a.startswith("--xm_"))])
    rest = command_line.fields_in(given)
    commands = [command_of(job, options, rest) for job in jobs]

    async def experiment() -> bool:
        all_finished = True
        try:
            async with xm_local.create_experiment(options.out.name) as entered:
                if options.executor == "local":
                    all_finished = await run_here(entered, jobs, commands, options.parallel)
                else:
                    await submit(entered, jobs, commands, options)
        except RuntimeError:
            # On leaving, XManager raises once more what a failed run of this machine raised.
            if all_finished:
                raise
        return all_finished

    if not asyncio.run(experiment()):
        raise SystemExit(1)


def declare(arguments: Sequence[str]) -> None:
    """Tells absl the names of our flags, which argparse reads.

    `xmanager launch` has absl parse all flags before it calls `main`, and absl refuses those it
    does not know.

    Args:
      arguments: what follows the script's name.
    """
    importlib.import_module("xmanager.xm")  # declares XManager's own
    for argument in arguments:
        name, equals, _ = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name and name not in absl_flags.FLAGS:
            define = absl_flags.DEFINE_string if equals else absl_flags.DEFINE_boolean
            define(name, None, "of launch/xm.py", allow_override=True)


def main(_: Sequence[str]) -> None:
    """Called by `xmanager launch`, with what absl has left of the command line: nothing."""
    guard(lambda: launch(_own(sys.argv)))


def _own(command_line: Sequence[str]) -> list[str]:
    """What follows the script's name and a double dash."""
    after = command_line[command_line.index("launch") + 2 :]
    return list(after[1:] if after[:1] == ["--"] else after)


if __name__ == "xm":  # as `xmanager launch` imports it
    declare(_own(sys.argv))
    if {"--help", "-h"} & set(_own(sys.argv)):
        launch(["--help"])  # rather than absl's, of XManager
elif __name__ == "__main__":
    guard(lambda: launch(sys.argv[1:]))

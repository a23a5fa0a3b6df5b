"""Runs a sweep on this machine, one run after another or N at a time.

    python launch/local.py --config=configs/sigma2.py --out=runs/sweep

The config's `get_hyper(hyper)` says which runs there are. Finished runs are skipped, interrupted
ones go on from their checkpoint, and a failed one does not stop the others: it is named at the end.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from heatmap.errors import UserError, guard
from launch import hyper
from launch.jobs import ROOT, Job, write_table

_POLL_SECONDS = 0.2
# Asks Linux (PR_SET_PDEATHSIG is 1) to stop this process cleanly when the launcher dies, were it
# by `kill -9`, and becomes the run itself.
_TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run(jobs: Sequence[Job], parallel: int = 1) -> bool:
    """Runs what is not finished yet, and writes sweep.csv after each run.

    Args:
      jobs: of one sweep, with distinct names.
      parallel: how many run at a time.

    Returns:
      Whether all have finished.
    """
    status = {job.name: "finished" if job.is_finished() else "waiting" for job in jobs}
    jobs[0].out.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if status[job.name] == "waiting"]
    running: dict[str, tuple[Job, subprocess.Popen]] = {}
    board = Board(jobs, status)
    write_table(jobs, status)
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running[job.name] = (job, _start(job))
                status[job.name] = "running"
                board.changed(job)
            for name, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    status[name] = _outcome(job, process)
                    write_table(jobs, status)
                    board.changed(job)
            board.refresh()
            time.sleep(_POLL_SECONDS)
    finally:  # Ctrl-C: the runs get it too, save and exit; no run outlives its launcher
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    return board.summarise()


def _start(job: Job) -> subprocess.Popen:
    command = job.command
    if sys.platform == "linux":
        command = [sys.executable, "-c", _TETHER, *command]
    with job.log.open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def _outcome(job: Job, process: subprocess.Popen) -> str:
    """A run that was asked to stop exits with 0 as well, but leaves no scores."""
    if process.returncode == 0 and job.scores():
        job.mark_finished()
        return "finished"
    return "failed" if process.returncode else "interrupted"


class Board:
    """The state of every run: a live table on a terminal, a line at each change elsewhere."""

    def __init__(self, jobs: Sequence[Job], status: dict[str, str]):
        self._jobs, self._status = jobs, status
        self._live = sys.stderr.isatty()
        self._drawn = 0
        skipped = sum(state == "finished" for state in status.values())
        print(f"{len(jobs)} runs, {skipped} of them finished already, in {jobs[0].out}", flush=True)

    def changed(self, job: Job) -> None:
        """Reports a run that started or ended."""
        if not self._live:
            print(f"{job.name}: {self._status[job.name]}", flush=True)

    def refresh(self) -> None:
        """Draws the table over the last one."""
        if not self._live:
            return
        width = max(len(job.name) for job in self._jobs)
        lines = [
            f"{job.name:<{width}}  {self._status[job.name]:<11}  {self._last_line(job)}"
            for job in self._jobs
        ]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        sys.stderr.write(up + "".join(f"\x1b[2K{line[:118]}\n" for line in lines))
        sys.stderr.flush()
        self._drawn = len(lines)

    def _last_line(self, job: Job) -> str:
        if self._status[job.name] not in ("running", "failed") or not job.log.is_file():
            return ""
        with job.log.open("rb") as file:
            file.seek(max(0, job.log.stat().st_size - 400))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def summarise(self) -> bool:
        """Prints what is not finished, and says whether that is nothing."""
        left = [job for job in self._jobs if self._status[job.name] != "finished"]
        for job in left:
            print(f"{job.name} {self._status[job.name]}: see {job.log}")
        print(f"{len(self._jobs) - len(left)} of {len(self._jobs)} runs finished", flush=True)
        return not left


def sweep_of(config: str) -> hyper.Sweep:
    """Asks a config file for its sweep.

    Raises:
      UserError: if there is no such file, or it has no `get_hyper`.
    """
    path = pathlib.Path(config.split(":", 1)[0])
    if not path.is_file():
        raise UserError(f"There is no config file {path}; configs/ has the ready ones.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # a .py file always has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_hyper"):
        raise UserError(
            f"{path} has no get_hyper(hyper) and so no sweep; write one that returns e.g. "
            "hyper.sweep('targets.sigma', [1.0, 2.0])."
        )
    return module.get_hyper(hyper)


def jobs_of(
    config: str, runs: hyper.Sweep, out: pathlib.Path, common: hyper.Overrides
) -> list[Job]:
    """Names the runs of a sweep, whose `common` overrides are not part of their names."""
    return [Job(hyper.name_of(o) or "run", config, {**o, **common}, o, out) for o in runs]


def parse_overrides(arguments: Sequence[str]) -> hyper.Overrides:
    """Reads '--config.field=value' arguments.

    Raises:
      UserError: for anything else.
    """
    overrides = {}
    for argument in arguments:
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"{argument!r} is not of the form --config.field=value.")
        overrides[field] = value
    return overrides


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the sweep; exit code 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python launch/local.py", description=__doc__)
    parser.add_argument("--config", required=True, help="a config file with get_hyper(hyper)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the sweep's folder")
    parser.add_argument("--parallel", type=int, default=1, help="how many runs at a time")
    options, rest = parser.parse_known_args(arguments)
    runs = sweep_of(options.config)
    jobs = jobs_of(options.config, runs, options.out.absolute(), parse_overrides(rest))
    if not run(jobs, options.parallel):
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)

"""Runs a sweep on this machine, one run after another or N at a time.

    python launch/local.py --config=configs/sigma2.py --out=runs/sweep

The config's `get_hyper(hyper)` says which runs there are. Finished runs are skipped, interrupted
ones go on from their checkpoint, and a failed one does not stop the others: it is named at the end.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from heatmap.errors import UserError, guard
from launch import jobs as jobs_lib
from launch.board import Board, report
from launch.jobs import Job, statuses, write_table

_POLL_SECONDS = 0.2


def run(jobs: Sequence[Job], parallel: int = 1) -> bool:
    """Runs what is not finished yet, and writes sweep.csv after each run.

    Args:
      jobs: of one sweep, with distinct names.
      parallel: how many run at a time.

    Returns:
      Whether all have finished.
    """
    status = statuses(jobs)
    waiting = [job for job in jobs if status[job.name] == "waiting"]
    running: dict[str, tuple[Job, subprocess.Popen]] = {}
    board = Board(jobs, status)
    write_table(jobs, status)
    try:
        with _leaving_at_sigterm():
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running[job.name] = (job, job.start())
                    status[job.name] = "running"
                    board.changed(job.name)
                for name, (job, process) in list(running.items()):
                    if process.poll() is not None:
                        del running[name]
                        status[name] = job.conclude(process.returncode)
                        write_table(jobs, status)
                        board.changed(name)
                board.refresh()
                time.sleep(_POLL_SECONDS)
    finally:  # Ctrl-C: the runs get it too, save and exit; no run outlives its launcher
        for _, process in running.values():
            process.terminate()
        for job, process in running.values():
            status[job.name] = job.conclude(process.wait())
        if running:
            write_table(jobs, status)
    return board.summarise()


def run_one(job: Job, launcher: int | None = None) -> str:
    """Runs a single run of a sweep, of which another process keeps the table.

    Args:
      job: skipped if it is finished.
      launcher: the number of a process on this machine without which the run is not to go on.

    Returns:
      What became of it, as `Job.conclude`.
    """
    if job.is_finished():
        return "finished"
    process = job.start()
    try:
        with _leaving_at_sigterm():
            while process.poll() is None and (launcher is None or _is_alive(launcher)):
                time.sleep(_POLL_SECONDS)
    finally:
        process.terminate()
        status = job.conclude(process.wait())
    return status


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does, with the exit code that shells give it."""

    def leave(number, _):
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the sweep; exit code 1 if a run is not finished."""
    flags = jobs_lib.parser("python launch/local.py", __doc__)
    flags.add_argument(
        "--only", metavar="NAME", help="one run of the sweep, without the table, as on a cluster"
    )
    flags.add_argument("--launcher", metavar="PID", type=int, help="ends --only when it ends")
    options, jobs = jobs_lib.parse(flags, arguments)
    if options.table:
        report(jobs, statuses(jobs))
        return
    if options.only is None:
        all_finished = run(jobs, options.parallel)
    else:
        chosen = [job for job in jobs if job.name == options.only]
        if not chosen:
            names = ", ".join(job.name for job in jobs)
            raise UserError(f"The sweep has no run {options.only!r}; it has {names}.")
        all_finished = run_one(chosen[0], options.launcher) == "finished"
    if not all_finished:
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)

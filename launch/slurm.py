"""Runs a sweep on a Slurm cluster, as one array job.

    python launch/slurm.py --config=configs/sigma2.py --out=runs/sweep --partition=gpu --gpus=1 \\
        --time=4:00:00 --parallel=8

Start it on a login node, with --out on a file system that all nodes share. The config's
`get_hyper(hyper)` says which runs there are. Runs that are finished or already queued are skipped,
so the same command goes on after any trouble. A run that is preempted or reaches the time limit
saves, is queued again and goes on from its checkpoint. With --nodes=4 each run has four nodes, a
process on each, which train one model together. --dry_run prints the batch script instead,
--table writes OUT/sweep.csv as it stands, --wait stays until the end and does so too. What is left
to say to sbatch: --sbatch=account=NAME, --setup='module load cuda'.
"""

import argparse
import getpass
import importlib
import json
import math
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from heatmap import workdir
from heatmap.errors import UserError, guard
from launch import jobs as jobs_lib
from launch.board import Board, report
from launch.jobs import Job, write_table

FOLDER = "slurm"  # in OUT: submitit's scripts, pickles and logs
QUEUE = "queue.json"  # in FOLDER: by name of the run, its number in Slurm
_QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
_POLL_SECONDS = {"slurm": 15.0, "local": 0.5}
# The processes of a run: when one fails, so do the others at once; when one has ended well, the
# first may still wait to be ended.
_TOGETHER = ("--kill-on-bad-exit=1", "--wait=0")
# Slurm ends a job some 30 seconds, at most minutes, after it asked its processes to leave.
_PATIENCE_SECONDS = 600.0


class Task:
    """A run on a node, as submitit starts, interrupts and continues it."""

    def __init__(self, job: Job):
        self.job = job
        self._pid: int | None = None

    def __call__(self) -> None:
        """Runs to the end; on several nodes, as one process of the run.

        Raises:
          RuntimeError: if the run did not finish, so that Slurm calls it failed.
        """
        if self.job.is_finished():
            return
        rank = int(os.environ.get("SLURM_PROCID", "0"))
        process = self.job.start(rank)
        self._pid = process.pid
        returncode = process.wait()
        if rank:  # the first knows what became of the run
            if returncode:
                raise RuntimeError(f"{self.job.name} failed: see {self.job.log_of(rank)}")
            return
        status = self.job.conclude(returncode)
        if status == "interrupted":
            # By Slurm, which signals all processes before it ends a job. A job that completes in
            # this time is not queued again after a preemption, so this one lets itself be ended.
            time.sleep(_PATIENCE_SECONDS)
        if status != "finished":
            raise RuntimeError(f"{self.job.name} {status}: see {self.job.log}")

    def checkpoint(self) -> Any:
        """Stops the run, which saves; called by submitit inside the handler of Slurm's warning.

        Returns:
          What is to be started when the job is queued again.
        """
        import submitit

        if self._pid is not None:
            try:
                os.kill(self._pid, signal.SIGTERM)
                # Popen.wait would block: the code that this handler interrupts holds its lock.
                os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
            except (ProcessLookupError, ChildProcessError):
                pass  # it ended just now
        return submitit.helpers.DelayedSubmission(Task(self.job))


def executor_of(options: argparse.Namespace, runs: int) -> Any:
    """Builds the submitit executor that the flags describe.

    Args:
      options: of the command line.
      runs: how many will be submitted.

    Raises:
      UserError: if submitit is not installed, or Slurm does not run here.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "launch/slurm.py needs submitit: pip install -e '.[launch]' in the project's folder."
        ) from error
    folder = options.out.absolute() / FOLDER
    if options.cluster == "local":
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=options.requeues)
        executor.update_parameters(
            timeout_min=options.time, gpus_per_node=options.gpus, signal_delay_s=options.grace
        )
        return executor

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:  # otherwise no script could be printed where there is no Slurm
            return 1 if options.dry_run else super().affinity()

    try:
        executor = Executor(folder, max_num_timeout=options.requeues)
    except RuntimeError as error:
        raise UserError(
            "There is no Slurm here (no srun): start this on a login node, or try --dry_run."
        ) from error
    executor.update_parameters(
        job_name=options.out.absolute().name,
        time=math.ceil(options.time),
        partition=options.partition,
        nodes=options.nodes,
        ntasks_per_node=1,
        gpus_per_node=options.gpus or None,
        cpus_per_task=options.cpus,
        mem=options.mem,
        setup=options.setup,
        array_parallelism=min(options.parallel, runs),
        signal_delay_s=options.grace,
        # srun reads it no longer from the batch script since Slurm 22.05.
        srun_args=[f"--cpus-per-task={options.cpus}", *(_TOGETHER if options.nodes > 1 else ())],
        additional_parameters={"requeue": True, **dict(options.sbatch)},
    )
    return executor


def script(executor: Any, runs: int) -> str:
    """Returns the batch script that would be submitted.

    Args:
      executor: of Slurm.
      runs: how many; more than one make an array.
    """
    if runs > 1:
        executor.parameters["map_count"] = runs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


class Queue:
    """Which run is which job in Slurm, kept in a file so that any later command knows it."""

    def __init__(self, out: pathlib.Path):
        self._path = out / FOLDER / QUEUE
        self._ids: dict[str, str] = {}  # by name of the run
        self._local: dict[str, Any] = {}  # jobs without Slurm, which end with this process
        if self._path.is_file():
            self._ids = json.loads(self._path.read_text())

    def add(self, names: Sequence[str], handles: Sequence[Any], cluster: str) -> None:
        """Adds runs that were submitted."""
        by_name = dict(zip(names, handles, strict=True))
        if cluster == "local":
            self._local.update(by_name)
            return
        self._ids.update({name: handle.job_id for name, handle in by_name.items()})
        workdir.write_json(self._path, self._ids)

    def statuses(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Says by name what is finished, running, queued, failed, or waiting to be submitted."""
        found = jobs_lib.statuses(jobs)
        states = _slurm_states() if self._ids else {}
        for name in [name for name, status in found.items() if status == "waiting"]:
            if name in self._local:
                found[name] = "failed" if self._local[name].done() else "running"
            elif name in self._ids:
                state = states.get(self._ids[name], "")
                found[name] = ("queued" if state in _QUEUED else "running") if state else "failed"
        return found


def _slurm_states() -> dict[str, str]:
    """Asks Slurm for the user's jobs that have not ended: state by number, '7_0' in an array."""
    command = ["squeue", f"--user={getpass.getuser()}", "--array", "--noheader", "--format=%i %T"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        raise UserError("There is no Slurm here (no squeue): ask on a login node.") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue failed: {error.stderr.strip()}") from error
    return dict(line.split(maxsplit=1) for line in lines.splitlines())


def submit(executor: Any, jobs: Sequence[Job]) -> list[Any]:
    """Submits runs, several as one array job.

    Args:
      executor: from `executor_of`.
      jobs: what is to run.

    Returns:
      submitit's jobs.

    Raises:
      UserError: if sbatch refuses them, with its reason.
    """
    import submitit

    try:
        with executor.batch():
            return [executor.submit(Task(job)) for job in jobs]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"sbatch refused the sweep: {reason}") from error


def wait(jobs: Sequence[Job], queue: Queue, poll_seconds: float) -> bool:
    """Shows the runs until none is queued or running, and keeps sweep.csv up to date.

    Args:
      jobs: of one sweep.
      queue: where they are.
      poll_seconds: between two looks.

    Returns:
      Whether all have finished.
    """
    status = queue.statuses(jobs)
    board = Board(jobs, status)
    settled = False
    while not settled:
        write_table(jobs, status)
        time.sleep(poll_seconds)
        # The last files of a node may show later than the end of its job: look once more.
        settled = not {"queued", "running"} & set(status.values())
        for name, state in queue.statuses(jobs).items():
            if status[name] != state:
                status[name] = state
                board.changed(name)
        board.refresh()
    write_table(jobs, status)
    return board.summarise()


def minutes(text: str) -> float:
    """Reads a time as Slurm writes it: 90, 90:00, 1:30:00, 1-12, 1-12:00 or 1-12:00:00."""
    days, dash, rest = text.rpartition("-")
    try:
        numbers = [int(part) for part in rest.split(":")]
        hours_first = bool(dash) or len(numbers) == 3
        hours, mins, seconds = [*([] if hours_first else [0]), *numbers, 0, 0][:3]
        total = int(days or 0) * 1440 + hours * 60 + mins + seconds / 60
    except ValueError:
        total = 0
    if total <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90, 4:00:00 or 1-12")
    return total


def _pair(text: str) -> tuple[str, str | bool]:
    """Reads KEY=VALUE, or KEY alone for a switch."""
    key, equals, value = text.partition("=")
    return key.removeprefix("--"), value if equals else True


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and submits the sweep; with --wait, 1 if a run is not finished."""
    flags = jobs_lib.parser("python launch/slurm.py", __doc__)
    flags.set_defaults(parallel=1000)  # as many as the cluster lets run
    flags.add_argument("--partition", help="where to queue; default: the cluster's own")
    flags.add_argument("--time", type=minutes, default="4:00:00", help="limit, until requeued")
    flags.add_argument("--nodes", type=jobs_lib.positive, default=1, help="of each run")
    flags.add_argument("--gpus", type=int, default=0, help="of each node")
    flags.add_argument("--cpus", type=jobs_lib.positive, default=4, help="of each node")
    flags.add_argument("--mem", default="16G", help="of each node")
    flags.add_argument("--requeues", type=int, default=20, help="at most, because of --time")
    flags.add_argument("--grace", type=int, default=120, help="seconds to save before --time")
    flags.add_argument("--sbatch", type=_pair, action="append", default=[], metavar="KEY=VALUE")
    flags.add_argument("--setup", action="append", metavar="LINE", help="shell, before the run")
    flags.add_argument("--dry_run", action="store_true", help="print the batch script and stop")
    flags.add_argument("--wait", action="store_true", help="stay until the end, write sweep.csv")
    flags.add_argument(
        "--cluster", choices=["slurm", "local"], default="slurm", help="local: a try without Slurm"
    )
    options, jobs = jobs_lib.parse(flags, arguments)
    if options.nodes > 1 and options.cluster == "local":
        raise UserError("--nodes needs a cluster: without --cluster=local, Slurm starts them.")
    if options.grace >= options.time * 60:
        raise UserError(
            f"--grace={options.grace} seconds leave nothing of --time, {options.time:g} minutes."
        )
    out, queue = jobs[0].out, Queue(options.out.absolute())
    status = queue.statuses(jobs)
    if options.table:
        report(jobs, status)
        return
    todo = [job for job in jobs if status[job.name] in ("waiting", "failed")]
    if todo:
        executor = executor_of(options, len(todo))
        if options.dry_run:
            print(script(executor, len(todo)))
            return
        handles = submit(executor, todo)
        queue.add([job.name for job in todo], handles, options.cluster)
        write_table(jobs, queue.statuses(jobs))
        numbers = sorted({handle.job_id.split("_")[0] for handle in handles})
        print(f"submitted as job {', '.join(numbers)}; see squeue --me, and {out}/*.log.")
        print(f"With --table the same command writes {out / jobs_lib.SWEEP}, with --wait it stays.")
    skipped = len(jobs) - len(todo)
    print(f"{len(todo)} of {len(jobs)} runs submitted, {skipped} are finished or queued")
    staying = options.wait or options.cluster == "local"
    if staying and not wait(jobs, queue, _POLL_SECONDS[options.cluster]):
        raise SystemExit(1)


if __name__ == "__main__":
    # submitit pickles Task by the name of its module, which must not be __main__.
    guard(importlib.import_module("launch.slurm").main)

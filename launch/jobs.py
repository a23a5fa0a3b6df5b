"""The runs of a sweep, as every runner sees them: a command, a folder, and what became of it.

OUT/NAME/           the workdir
OUT/NAME.log        what the run printed; NAME.1.log, … its further processes, if it has any
OUT/NAME.done       the settings of the run that finished there
OUT/sweep.csv       one line for each run
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from heatmap import command_line, fields, workdir
from heatmap import config as config_lib
from heatmap.errors import UserError
from launch import hyper

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = "sweep.csv"
EPILOG = "Any --config.FIELD=VALUE is set in every run."
# Becomes a command that Linux (PR_SET_PDEATHSIG is 1) asks to stop when its parent dies, were it
# by `kill -9`. SIGUSR2 is Slurm's warning to every process of a job, and kills one that does not
# expect it; what started the run answers it.
_TETHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of main.py.

    Attributes:
      name: of its folder.
      config: the config file, perhaps with an argument: 'configs/beetles.py:sigma=2'.
      overrides: config fields to set.
      columns: what tells this run from the others, for sweep.csv.
      out: the sweep's folder.
    """

    name: str
    config: str
    overrides: hyper.Overrides
    columns: dict[str, Any]
    out: pathlib.Path

    @property
    def workdir(self) -> pathlib.Path:
        """Where the run trains."""
        return self.out / self.name

    @property
    def log(self) -> pathlib.Path:
        """What the run printed."""
        return self.log_of(0)

    def log_of(self, process: int) -> pathlib.Path:
        """What one of several processes printed that train together; the first says most."""
        return self.out / (f"{self.name}.{process}.log" if process else f"{self.name}.log")

    @property
    def command(self) -> list[str]:
        """The command line, to be run in the project's folder."""
        return [
            sys.executable,
            str(ROOT / "main.py"),
            f"--config={self.config}",
            f"--workdir={self.workdir}",
            *hyper.flags(self.overrides),
        ]

    def start(self, process: int = 0) -> subprocess.Popen:
        """Starts the run, which goes on from its checkpoint if there is one and ends with us.

        Args:
          process: which of several it is that train together.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        tether = [sys.executable, "-c", _TETHER] if sys.platform == "linux" else []
        with self.log_of(process).open("a") as log:
            return subprocess.Popen(
                [*tether, *self.command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
            )

    def conclude(self, returncode: int) -> str:
        """Notes what became of a run that was started here.

        Args:
          returncode: of its process.

        Returns:
          'finished', 'failed' or 'interrupted'. A run that was asked to stop exits with 0 as well,
          but leaves no scores; before it listens to signals they end it.
        """
        if returncode == 0 and self.scores():
            self.mark_finished()
            return "finished"
        stopped = (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
        return "interrupted" if returncode in stopped else "failed"

    def is_finished(self) -> bool:
        """Says whether a run with these very settings has come to its end here."""
        noted = self._done.is_file() and self._done.read_text() == self._signature
        return noted and bool(self.scores())

    def mark_finished(self) -> None:
        """Notes that the run has come to its end."""
        workdir.write_text(self._done, self._signature)

    def scores(self) -> dict[str, Any]:
        """Reads the run's metrics, empty where there are none."""
        return workdir.read_metrics(self.workdir)

    @property
    def _done(self) -> pathlib.Path:
        return self.out / f"{self.name}.done"

    @property
    def _signature(self) -> str:  # names no folder: a sweep may be copied, e.g. from a cluster
        return json.dumps([f"--config={self.config}", *hyper.flags(self.overrides)], indent=1)


def statuses(jobs: Sequence[Job]) -> dict[str, str]:
    """Says by name which runs are 'finished'; the others are 'waiting'."""
    return {job.name: "finished" if job.is_finished() else "waiting" for job in jobs}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of sweep.csv.

    Attributes:
      name: of the run.
      status: 'finished', 'failed', …
      columns: what tells it from the others.
      scores: by metric key, empty if it is not finished.
    """

    name: str
    status: str
    columns: Mapping[str, Any]
    scores: Mapping[str, Any]


def write_table(
    jobs: Sequence[Job], status: Mapping[str, str], path: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes sweep.csv: name, status, what was varied, then every score.

    Args:
      jobs: of one sweep.
      status: by name: 'finished', 'failed', …
      path: of the table; default: sweep.csv in the sweep's folder.

    Returns:
      The file's path.
    """
    path = path or jobs[0].out / SWEEP
    lines = [
        Line(
            job.name,
            status[job.name],
            job.columns,
            job.scores() if status[job.name] == "finished" else {},
        )
        for job in jobs
    ]
    write_lines(lines, path)
    return path


def write_lines(lines: Sequence[Line], path: pathlib.Path) -> None:
    """Writes a sweep.csv of lines that may have different columns and scores."""
    varied = list(dict.fromkeys(column for line in lines for column in line.columns))
    measures = sorted({measure for line in lines for measure in line.scores})
    with workdir.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["name", "status", *varied, *measures])
        writer.writeheader()
        for line in lines:
            own = {"name": line.name, "status": line.status}
            writer.writerow({**own, **line.columns, **line.scores})


def sweep_of(config: str) -> hyper.Sweep:
    """Asks a config file for its sweep.

    Raises:
      UserError: if there is no such file, or its `get_hyper` is missing, fails or returns no run.
    """
    path = pathlib.Path(config.split(":", 1)[0])
    if not path.is_file():
        raise UserError(f"There is no config file {path}; configs/ has the ready ones.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; configs/ has the ready ones.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_hyper"):
        raise UserError(
            f"{path} has no get_hyper(hyper) and so no sweep; write one that returns e.g. "
            "hyper.sweep('targets.sigma', [1.0, 2.0])."
        )
    try:
        runs = module.get_hyper(hyper)
    except Exception as error:  # hyper's about lists that do not fit, or any of the user's code
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"get_hyper in {path}: {kind}{error}") from error
    if not isinstance(runs, list) or not all(isinstance(run, Mapping) for run in runs):
        raise UserError(f"get_hyper in {path} must return a list of {{field: value}}.")
    if not runs:
        raise UserError(f"get_hyper in {path} returns no run.")
    return runs


def jobs_of(
    config: str, runs: hyper.Sweep, out: pathlib.Path, common: hyper.Overrides
) -> list[Job]:
    """Names the runs of a sweep, whose `common` overrides are not part of their names.

    Raises:
      UserError: if a field is none of the config's, or set for all runs and varied as well, or if
        two runs have one name.
    """
    known = fields.names_of(config_lib.Config)
    for field in dict.fromkeys(name for run in [*runs, common] for name in run):
        if not hyper.is_argument(field) and field not in known:
            raise UserError(f"{field} is not a config field: {fields.nearest(field, known)}")
    refuse_fixed(common, {field for run in runs for field in run})
    jobs = []
    for run in runs:
        arguments, overrides = hyper.divide(run)
        columns = {field.removeprefix(hyper.ARGUMENT): value for field, value in run.items()}
        job = Job(
            hyper.name_of(run) or "run",
            hyper.with_arguments(config, arguments),
            {**overrides, **common},
            columns,
            out,
        )
        jobs.append(job)
    names = [job.name for job in jobs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"Two runs of the sweep would share the folder {out / twice}.")
    return jobs


def refuse_fixed(common: hyper.Overrides, varied: Collection[str]) -> None:
    """Refuses to set a field for all runs that the runs themselves set.

    Raises:
      UserError: naming the field; the table would name settings that no run has.
    """
    for field in common:
        if field in varied:
            raise UserError(f"The runs set {field} themselves: leave --config.{field} out.")


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


def positive(text: str) -> int:
    """Reads a whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parser(program: str, about: str | None) -> argparse.ArgumentParser:
    """Returns a command line with the flags that every runner has.

    Args:
      program: as the user types it.
      about: what it does, for --help.
    """
    flags = command_line.parser(program, about)
    flags.epilog = EPILOG
    flags.add_argument("--config", required=True, help="a config file with get_hyper(hyper)")
    flags.add_argument("--out", type=pathlib.Path, required=True, help="the sweep's folder")
    flags.add_argument("--parallel", type=positive, default=1, help="how many runs at a time")
    flags.add_argument("--table", action="store_true", help="write sweep.csv as it is, and stop")
    return flags


def parse(
    flags: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[Job]]:
    """Parses a runner's command line.

    Args:
      flags: from `parser`.
      arguments: what follows the program's name; None = of this process.

    Returns:
      The options, and the runs of the sweep that they describe.

    Raises:
      UserError: for a config, sweep or field that cannot be used.
    """
    options, rest = flags.parse_known_args(arguments)
    runs = sweep_of(options.config)
    return options, jobs_of(options.config, runs, options.out.absolute(), parse_overrides(rest))

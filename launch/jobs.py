"""One run of a sweep, as every runner sees it: a command, a folder, and what became of it.

OUT/NAME/           the workdir
OUT/NAME.log        what the run printed
OUT/NAME.done       the command of the run that finished there
OUT/sweep.csv       one line for each run
"""

import csv
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from heatmap import workdir
from launch import hyper

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = "sweep.csv"


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
        return self.out / f"{self.name}.log"

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

    def is_finished(self) -> bool:
        """Says whether this very command has run to its end here."""
        return self._done.is_file() and self._done.read_text() == self._signature

    def mark_finished(self) -> None:
        """Notes that the command has run to its end."""
        workdir.write_text(self._done, self._signature)

    def scores(self) -> dict[str, Any]:
        """Reads the run's metrics, empty where there are none."""
        return workdir.read_metrics(self.workdir)

    @property
    def _done(self) -> pathlib.Path:
        return self.out / f"{self.name}.done"

    @property
    def _signature(self) -> str:
        return json.dumps(self.command[2:], indent=1) + "\n"


def write_table(jobs: Sequence[Job], status: dict[str, str]) -> pathlib.Path:
    """Writes sweep.csv: name, status, what was varied, then every score.

    Args:
      jobs: of one sweep.
      status: by name: 'finished', 'failed', …

    Returns:
      The file's path.
    """
    scores = {job.name: job.scores() if status[job.name] == "finished" else {} for job in jobs}
    varied = list(dict.fromkeys(column for job in jobs for column in job.columns))
    measures = sorted({key for values in scores.values() for key in values})
    path = jobs[0].out / SWEEP
    with workdir.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["name", "status", *varied, *measures])
        writer.writeheader()
        for job in jobs:
            line = {"name": job.name, "status": status[job.name], **job.columns}
            writer.writerow({**line, **scores[job.name]})
    return path

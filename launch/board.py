"""What a launcher shows: a live table on a terminal, a line at each change elsewhere."""

import sys
from collections.abc import Sequence

from launch.jobs import Job, write_table


class Board:
    """The state of every run: a live table on a terminal, a line at each change elsewhere."""

    def __init__(self, jobs: Sequence[Job], status: dict[str, str]):
        self._jobs, self._status = jobs, status
        self._live = sys.stderr.isatty()
        self._drawn = 0
        skipped = sum(state == "finished" for state in status.values())
        print(f"{len(jobs)} runs, {skipped} of them finished already, in {jobs[0].out}", flush=True)

    def changed(self, name: str) -> None:
        """Reports a run that started or ended."""
        if not self._live:
            print(f"{name}: {self._status[name]}", flush=True)

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


def report(jobs: Sequence[Job], status: dict[str, str]) -> bool:
    """Writes sweep.csv as it stands and prints what is not finished.

    Args:
      jobs: of one sweep.
      status: by name.

    Returns:
      Whether all have finished.
    """
    write_table(jobs, status)
    return Board(jobs, status).summarise()

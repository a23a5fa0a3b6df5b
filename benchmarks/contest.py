"""Side by side: contestants in processes of their own, that take turns within one run.

What is timed one after the other on a shared machine tells more of the machine's hours than of the
contestants. Here all are started and warmed up first; then each takes a short turn while the others
sleep, round after round and in another order each time. Ratios of medians are what counts.

A contestant is a command that calls `serve`; processes keep apart what cannot share one, such as
settings of malloc or the number of JAX devices.
"""

import contextlib
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import output
from heatmap import hardware
from heatmap.errors import UserError

# As `main.py` starts itself; and JAX is not to take a GPU whole, which all contestants share.
KEPT_MEMORY = {
    "GLIBC_TUNABLES": hardware.kept_memory(),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    Attributes:
      name: in the table.
      command: starts a process that calls `serve`.
      environment: variables that it is given besides ours.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a contestant said of itself, and how long its turns took.

    Attributes:
      name: of the contestant.
      facts: what it said before its first turn.
      seconds: of a unit of its work, such as a step, by turn.
      memory: the most that its process has held, bytes.
    """

    name: str
    facts: dict[str, Any]
    seconds: list[float]
    memory: float = math.nan

    @property
    def median(self) -> float:
        """Seconds of a unit of work, the median over turns."""
        return float(np.median(self.seconds))


def between(values: Iterable[float]) -> str:
    """Words the quartiles of what turns have come to, '12.1 – 13.4'."""
    low, high = (float(quartile) for quartile in np.percentile(list(values), (25, 75)))
    return f"{output.cell(low)} – {output.cell(high)}"


def told(of: str, results: Iterable[Result]) -> list[dict[str, Any]]:
    """Lays out what contestants said of themselves, such as their devices.

    Args:
      of: what they compete in: a model, a config.
      results: theirs.
    """
    return [{"of": of, "contestant": result.name, **result.facts} for result in results]


def hold(contestants: Sequence[Contestant], rounds: int) -> list[Result]:
    """Starts all contestants and lets them take turns.

    Args:
      contestants: one that ends before its first turn drops out, with its reason on stderr.
      rounds: turns of each.

    Returns:
      A result for each that took part, in the order given.

    Raises:
      UserError: if none takes part.
    """
    workers: list[_Worker] = []
    order = random.Random(0)
    try:
        for contestant in contestants:
            worker = _Worker(contestant)
            workers.append(worker)
            if not worker.is_ready():
                workers.remove(worker)
        if not workers:
            raise UserError("No contestant could start; what each said stands above.")
        for turn in range(rounds):
            for worker in order.sample(workers, len(workers)):
                worker.take_turn()
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for worker in workers:
            worker.close()
    return [Result(worker.name, worker.facts, worker.seconds, worker.memory) for worker in workers]


def serve(facts: Mapping[str, Any], turn: Callable[[], float]) -> None:
    """Answers the process that holds the contest until it hangs up.

    Args:
      facts: what to say of this contestant, JSON; everything is warm by now.
      turn: works for a while and returns the seconds of one unit of work.
    """
    with os.fdopen(int(os.environ[_CHANNEL]), "w") as channel:
        print(json.dumps(dict(facts)), file=channel, flush=True)
        for _ in sys.stdin:
            print(json.dumps([turn(), hardware.most_memory()]), file=channel, flush=True)


_CHANNEL = "HEATMAP_CONTEST_CHANNEL"  # a pipe apart from stdout, on which libraries may talk


class _Worker:
    """A contestant's process."""

    def __init__(self, contestant: Contestant):
        self.name = contestant.name
        self.facts: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.memory = math.nan
        reading, writing = os.pipe()
        print(f"starting {self.name}", file=sys.stderr, flush=True)
        self._process = subprocess.Popen(
            contestant.command,
            stdin=subprocess.PIPE,
            stdout=sys.__stderr__,  # this process' own is for the table
            text=True,
            pass_fds=(writing,),
            env={**os.environ, **contestant.environment, _CHANNEL: str(writing)},
        )
        os.close(writing)
        self._answers: Iterator[str] = os.fdopen(reading)

    def is_ready(self) -> bool:
        """Waits until the contestant is warm; False if it ended instead."""
        line = next(self._answers, "")
        if not line:
            self.close()
            print(f"{self.name} drops out", file=sys.stderr, flush=True)
            return False
        self.facts = json.loads(line)
        return True

    def take_turn(self) -> None:
        """Lets the contestant work, and notes the seconds of a unit."""
        assert self._process.stdin is not None  # a pipe, as asked for
        with contextlib.suppress(BrokenPipeError):  # it ended while others had their turn
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        line = next(self._answers, "")
        if not line:
            raise UserError(
                f"{self.name} ended before its turn was over; what it said stands above."
            )
        seconds, self.memory = json.loads(line)
        self.seconds.append(seconds)

    def close(self) -> None:
        """Hangs up, and waits for the process to end."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._process.wait()

"""From the command to the first step: a first start, and a second that finds compiled programs.

    python -m benchmarks.startup
    python -m benchmarks.startup --config=configs/regression.py --rounds 5

Starts `main.py` again and again, in turns with an empty folder of compiled programs and with the
one that the turn before has filled, and prints the medians of what each start said of itself. The
data set is drawn once, before.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import output
from heatmap import command_line
from heatmap.errors import UserError, guard
from heatmap.startup import COMPILING
from launch.jobs import ROOT

STARTS = ("first", "second")


def start(flags: Sequence[str], caches: pathlib.Path, folder: pathlib.Path) -> dict[str, float]:
    """Trains for one step, and returns the seconds of each phase before its end.

    Args:
      flags: the config and its fields.
      caches: where compiled programs are kept.
      folder: an empty one.

    Raises:
      UserError: if the run fails.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(caches)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    one_step = ["--config.train.epochs=0", "--config.train.steps=1", f"--workdir={folder / 'run'}"]
    command = [sys.executable, str(ROOT / "main.py"), *flags, *one_step]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"main.py failed: {said[-1]}")
    return phases(done.stdout)


def phases(printed: str) -> dict[str, float]:
    """Reads the line that `heatmap.startup` has printed."""
    (line,) = [line for line in printed.splitlines() if line.startswith("first step after")]
    found = re.findall(r"[:,] ([a-z ]+) (\d+\.\d)", line)
    return {phase: float(seconds) for phase, seconds in found}


def measure(flags: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Starts so many times each way, and returns the medians as rows."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        start(flags, place / "unused", place / "data")  # draws the data set, fills disk caches
        for turn in range(rounds):
            for which in STARTS:
                folder = place / f"{turn}-{which}"
                seconds[which].append(start(flags, place / f"caches-{turn}", folder))
            print(f"round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return [
        {
            "start": which,
            **{phase: float(np.median([one[phase] for one in found])) for phase in found[0]},
            "all": float(np.median([sum(one.values()) for one in found])),
        }
        for which, found in seconds.items()
    ]


def draw(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draws the phases of each start one behind the other."""
    left = np.zeros(len(rows))
    for phase in (column for column in rows[0] if column not in ("start", "all")):
        seconds = np.array([row[phase] for row in rows])
        hatch = "//" if phase == COMPILING else None
        axes.barh([row["start"] for row in rows], seconds, left=left, label=phase, hatch=hatch)
        left += seconds
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the command to the end of the first step")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, starts and publishes."""
    parser = output.parser("startup", __doc__)
    parser.add_argument("--rounds", type=output.count, default=3, help="first and second starts")
    words = sys.argv[1:] if arguments is None else arguments
    options, _ = command_line.read(parser, words, default="configs/sigma2.py")
    flags = [f"--config={options.config}", *command_line.fields_in(words)]
    rows = measure(flags, options.rounds)
    output.publish(options.out, "startup", rows, lambda axes: draw(rows, axes))


if __name__ == "__main__":
    guard(main)

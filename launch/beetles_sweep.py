"""The sweep of experiment 004, σ × learning rate, on this machine.

    python launch/beetles_sweep.py --list
    python launch/beetles_sweep.py --out=runs/beetles --config.data.root=DIR \\
        --config.model.backbone_weights=WEIGHTS

Twelve runs of configs/beetles.py; finished ones are skipped and interrupted ones continued, so the
same command goes on where it stopped. At the end OUT/sweep.csv has a line for each run, and
OUT/sweep.png shows the primary metric. On a cluster, `launch/slurm.py --config=configs/beetles.py`
runs the same twelve; this command then finds them finished, and draws.
"""

import math
import pathlib
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from configs.beetles import LEARNING_RATES, SIGMAS
from heatmap import command_line, workdir
from heatmap.errors import guard
from launch import hyper, local
from launch import jobs as jobs_lib
from launch.jobs import Job

CONFIG = "configs/beetles.py"
PRIMARY = "val/hawaii/length_line_err_cm"


def jobs_of(out: pathlib.Path, overrides: hyper.Overrides) -> list[Job]:
    """Lists the twelve runs.

    Args:
      out: the sweep's folder.
      overrides: config fields that all runs share.
    """
    runs = jobs_lib.sweep_of(str(jobs_lib.ROOT / CONFIG))
    return jobs_lib.jobs_of(CONFIG, runs, out, overrides)


def draw(jobs: Sequence[Job], metric: str, path: pathlib.Path) -> None:
    """Draws a metric over σ and learning rate; a run without it stays blank.

    Args:
      jobs: of the sweep.
      metric: a key of metrics.json.
      path: of the picture.
    """
    grid = np.full((len(SIGMAS), len(LEARNING_RATES)), math.nan)
    for job in jobs:
        place = SIGMAS.index(job.columns["sigma"]), LEARNING_RATES.index(job.columns["lr"])
        value = job.scores().get(metric) if job.is_finished() else None
        grid[place] = math.nan if value is None else value
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    image = axes.imshow(grid, cmap="viridis_r", aspect="auto")
    found = grid[np.isfinite(grid)]
    middle = (found.min() + found.max()) / 2 if found.size else 0.0
    for (row, column), value in np.ndenumerate(grid):
        if math.isfinite(value):
            axes.text(
                column,
                row,
                f"{value:.4g}",
                ha="center",
                va="center",
                color="white" if value > middle else "black",
            )
    axes.set_xticks(range(len(LEARNING_RATES)), LEARNING_RATES)
    axes.set_yticks(range(len(SIGMAS)), SIGMAS)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("σ, heatmap pixels")
    axes.set_title(metric)
    figure.colorbar(image)
    with workdir.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the sweep; exit code 1 if a run is not finished."""
    parser = command_line.parser("python launch/beetles_sweep.py", __doc__)
    parser.add_argument("--list", action="store_true", help="print the runs and stop")
    parser.add_argument(
        "--out", type=pathlib.Path, default="runs/beetles", help="the sweep's folder"
    )
    parser.add_argument("--steps", type=jobs_lib.positive, help="a shorter training of each run")
    parser.add_argument(
        "--parallel", type=jobs_lib.positive, default=1, help="how many runs at a time"
    )
    parser.add_argument("--metric", default=PRIMARY, help="what to draw")
    options, rest = parser.parse_known_args(arguments)
    overrides = jobs_lib.parse_overrides(rest)
    if options.steps is not None:
        overrides["train.steps"] = options.steps
    jobs = jobs_of(options.out.absolute(), overrides)
    if options.list:
        for job in jobs:
            print(" ".join(f"{key}={value}" for key, value in job.columns.items()))
        return
    all_finished = local.run(jobs, options.parallel)
    draw(jobs, options.metric, options.out / "sweep.png")
    if not all_finished:
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)

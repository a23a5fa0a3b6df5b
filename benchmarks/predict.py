"""Reading points off pictures, side by side with PyTorch: one at a time, and in batches.

    python -m benchmarks.predict

Each contestant is a process of its own that runs the network forward and decodes, on pictures
that lie in memory; all take short turns within one run. Ours is what `heatmap.predict` asks for
whole batches, and `heatmap.serve` for one picture; beside it, in a process that keeps its memory as
`main.py` does. It decodes as its config says, with scores and entropy; the twin of PyTorch, which
comes with the extra `bench`, takes the highest cell of each map.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

from benchmarks import contest, output, train_step
from benchmarks.contest import Contestant, Result
from benchmarks.train_step import LARGE_BLOCKS, MODELS, OURS, side
from heatmap.errors import guard

REFERENCE = "PyTorch, channels last, tuned malloc"


def contestants(model: train_step.Model, batch: int, seconds: float) -> list[Contestant]:
    """Lists who takes part for one model and batch."""
    flags = ["--predict", *model.flags]
    flags += [f"--config.train.batch_size={batch}", f"--seconds={seconds}"]
    sides = [
        side("jax", OURS, flags, {"GLIBC_TUNABLES": ""}),  # as heatmap.predict starts
        side("jax", f"{OURS}, our malloc", flags, {}),
    ]
    if importlib.util.find_spec("torch"):
        flags = [*flags, "--channels_last"]
        sides += [
            side("torch", REFERENCE, flags, LARGE_BLOCKS),
            side("torch", f"{REFERENCE}, compiled", [*flags, "--compiled"], LARGE_BLOCKS),
        ]
    return sides


def rows(name: str, batch: int, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Lays out the results of one model and batch."""
    reference = {result.name: result for result in results}.get(REFERENCE)
    return [
        {
            "model": f"{name}, {batch} at a time",
            "contestant": result.name,
            "ms": 1e3 * result.median,
            "quartiles": contest.between(1e3 * second for second in result.seconds),
            "images/s": batch / result.median,
            f"times {REFERENCE}": reference.median / result.median if reference else float("nan"),
            "seconds": result.seconds,
        }
        for result in results
    ]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, holds the contests and publishes them."""
    parser = output.parser("predict", __doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=output.count, default=7, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument(
        "--batches", type=output.count, nargs="+", help="default: 1, and that of training"
    )
    options = parser.parse_args(arguments)
    found, told = [], []
    for name in options.models:
        for batch in options.batches or (1, MODELS[name].batch):
            sides = contestants(MODELS[name], batch, options.seconds)
            results = contest.hold(sides, options.rounds)
            found += rows(name, batch, results)
            told += contest.told(f"{name}, {batch} at a time", results)
    output.publish(
        options.out,
        "predict",
        found,
        lambda axes: train_step.draw(found, axes, "prediction"),
        contestants=told,
    )


if __name__ == "__main__":
    guard(main)

"""Target maps rendered on the host, in tf.data, beside the device, inside the jitted step.

    python -m benchmarks.targets --config=configs/sigma2.py --config.train.steps=120

Trains two networks that differ in `targets.render` alone, from the same seed on the same pictures,
a few steps of one and a few of the other in turn. Prints how fast each went, how fast their input
is by itself, and how far their losses and validation scores are apart at the end.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Literal, get_args

import jax
import numpy as np

import input_pipeline
from heatmap import command_line, evaluate, optim
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.config import Config
from heatmap.errors import UserError, guard
from heatmap.step import make_train_step
from input_pipeline import batching

Place = Literal["host", "device"]
TURN = 10  # steps in a row; the first turn of each, with the compilation, is not timed


class Contestant:
    """One run of the two.

    Attributes:
      losses: of every step.
      seconds: of every turn but the first.
      input_seconds: the same for the input alone.
    """

    def __init__(self, config: Config, place: Place, records, split):
        """Builds a run that renders its targets in one place, 'host' or 'device'."""
        self.config = dataclasses.replace(
            config, targets=dataclasses.replace(config.targets, render=place)
        )
        self.train, self.val = (records.take(split.rows[name]) for name in ("train", "val"))
        self.run = run_lib.build(self.config, records.points)
        optimiser, _ = optim.create(self.config.optim, self.config.train.steps)
        self.step = make_train_step(self.run, optimiser)
        self.state = state_lib.new_state(
            self.run.weights, optimiser, self.config.optim.ema_decay > 0
        )
        self.batches = self._batches()
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.input_seconds: list[float] = []

    def _batches(self) -> Iterator[batching.Batch]:
        return batching.train_batches(self.train, self.config, 0, self.config.train.steps)

    def take_turn(self, timed: bool) -> None:
        """Trains for TURN steps."""
        began, found = time.perf_counter(), []
        sharding = state_lib.sharded(self.run.mesh)
        for _ in range(TURN):
            moved = batching.to_devices(next(self.batches), sharding)
            self.state, told = self.step(self.state, moved, {})
            found.append(told.loss)
        self.losses += [float(loss) for loss in found]  # waits for the last step
        if timed:
            self.seconds.append(time.perf_counter() - began)

    def read_input(self) -> None:
        """Times the input with nothing behind it, in turns as long."""
        batches = self._batches()
        for turn in range(self.config.train.steps // TURN):
            began = time.perf_counter()
            for _ in range(TURN):
                next(batches)
            if turn:
                self.input_seconds.append(time.perf_counter() - began)

    def scores(self) -> dict[str, float]:
        """Scores the validation split."""
        step = evaluate.make_predict_step(self.run)
        predictions, loss = evaluate.predict(self.run, step, self.state.weights, self.val)
        return evaluate.score(self.run, "val", predictions, loss)


def compare(config: Config) -> list[str]:
    """Runs both and returns the lines of the report, Markdown.

    Raises:
      UserError: if the run is too short to time.
    """
    if config.train.steps < 3 * TURN:
        raise UserError(f"Nothing can be timed: give --config.train.steps={3 * TURN} or more.")
    records, split = input_pipeline.load(config.data)
    host, device = both = [Contestant(config, place, records, split) for place in get_args(Place)]
    with jax.set_mesh(host.run.mesh):
        for turn in range(config.train.steps // TURN):
            for contestant in both if turn % 2 else both[::-1]:
                contestant.take_turn(timed=turn > 0)
        measured = [contestant.scores() for contestant in both]
    for contestant in both:
        contestant.read_input()
    return [
        *_speed_table(config, both),
        "",
        f"Largest difference of a step's loss: {_apart(host.losses, device.losses):.1e} of it.",
        "",
        *_score_table(*measured),
    ]


def _speed_table(config: Config, both: list[Contestant]) -> list[str]:
    pictures = TURN * config.train.batch_size
    lines = ["| images/s, median of turns | host | device | device / host |", "|---|---|---|---|"]
    for what in ("seconds", "input_seconds"):
        host, device = (pictures / float(np.median(getattr(c, what))) for c in both)
        label = {"seconds": "training", "input_seconds": "input alone"}[what]
        lines.append(f"| {label} | {host:.1f} | {device:.1f} | {device / host:.3f} |")
    return lines


def _score_table(host: dict[str, float], device: dict[str, float]) -> list[str]:
    names = ("loss", "error_px", "error_px/median", "error_px/p95", "pck@0.05")
    lines = ["| val | host | device |", "|---|---|---|"]
    for name in names:
        values = host.get(f"val/{name}", math.nan), device.get(f"val/{name}", math.nan)
        if all(map(math.isfinite, values)):
            lines.append(f"| `{name}` | {values[0]:.6g} | {values[1]:.6g} |")
    return lines


def _apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints the report."""
    parser = command_line.parser("python -m benchmarks.targets", __doc__)
    _, config = command_line.read(parser, arguments, default="configs/sigma2.py")
    state_lib.divide_cpu(config.train.batch_size)
    print("\n".join(compare(config)))


if __name__ == "__main__":
    guard(main)

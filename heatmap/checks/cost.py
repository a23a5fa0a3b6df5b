"""What a run will cost: memory, milliseconds a step, and hours, from a few steps of it."""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from heatmap import evaluate, features, hardware, optim
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap import step as step_lib
from heatmap.checks.finding import FAIL, OK, WARN, Finding
from heatmap.config import Config
from heatmap.errors import UserError

NAME = "cost"
_SECONDS = 5.0  # to take steps for, at least two of them and at most _STEPS
_STEPS = 200
_EVAL_BATCHES = 3
_FEATURE_BATCHES = 4
_NO_ROOM = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds and bytes.

    Attributes:
      compiling: seconds until the first step is compiled.
      step: seconds of a step, its input included.
      waiting: the share of that in which the loop waits for its input.
      evaluation: seconds to predict the validation split once.
      features: seconds to run a frozen backbone once on all pictures, if that is asked for.
      device_bytes: of a device that the step needs, None where XLA does not say.
      host_bytes: the most that the process has held.
    """

    compiling: float
    step: float
    waiting: float
    evaluation: float
    features: float
    device_bytes: int | None
    host_bytes: int


def check(config: Config, splits: Mapping[str, Any], patience: float = _SECONDS) -> Finding:
    """Takes a few steps of the run, from its own input, and estimates the whole.

    Args:
      config: of the run.
      splits: `input_pipeline.Records` by split.
      patience: seconds to take steps for.
    """
    try:
        cost = measure(config, splits, patience)
    except UserError as error:
        return Finding(FAIL, NAME, str(error))
    except jax.errors.JaxRuntimeError as error:
        if _NO_ROOM not in str(error):
            raise
        message = (
            f"a step does not fit into the memory of {jax.devices()[0].device_kind}: lower "
            f"train.batch_size={config.train.batch_size}, or set model.remat or model.dtype"
        )
        return Finding(FAIL, NAME, message, data={"error": str(error)[:500]})
    return describe(config, splits, cost)


def measure(config: Config, splits: Mapping[str, Any], patience: float) -> Cost:
    """Compiles the step, takes some and predicts some, as a run does.

    Args:
      config: of the run.
      splits: `input_pipeline.Records` by split.
      patience: seconds to take steps for.

    Raises:
      UserError: for what cannot be built, or has no room.
    """
    from input_pipeline import batching

    train, val = splits["train"], splits["val"]
    run = run_lib.build(config, train.points)
    kept, feature_seconds = None, 0.0
    everywhere = state_lib.replicated(run.mesh)
    with jax.set_mesh(run.mesh):
        if config.model.keep_features:
            train = train.take(slice(_FEATURE_BATCHES * config.train.batch_size))
            began = time.perf_counter()
            kept = features.compute(run, run.weights, train)
            pictures = sum(map(len, splits.values()))
            feature_seconds = (time.perf_counter() - began) * pictures / len(train)
        resident = batching.resident_pictures(train, config.data, everywhere)
        steps = batching.steps_per_run(config, len(splits["train"]))
        batches = batching.train_batches(train, config, 0, 3 + _STEPS, kept)
        optimiser, _ = optim.create(config.optim, steps)
        stepper = _Stepper(run, optimiser, resident, next(batches))
        seconds, waiting = stepper.time(batches, patience)
        weights, needed = stepper.state.weights, stepper.device_bytes
        evaluation = _evaluation(run, weights, val)
    return Cost(
        compiling=stepper.compiling,
        step=seconds,
        waiting=waiting,
        evaluation=evaluation,
        features=feature_seconds,
        device_bytes=needed,
        host_bytes=hardware.most_memory(),
    )


class _Stepper:
    """The compiled step with its state."""

    def __init__(self, run: run_lib.Run, optimiser, resident, batch):
        from input_pipeline import batching

        self._to_devices = batching.to_devices
        self._sharding, self._resident = state_lib.sharded(run.mesh), resident
        create, _, places = step_lib.first_state(run, optimiser)
        began = time.perf_counter()
        self.state = jax.jit(create, donate_argnums=0, out_shardings=places)(run.weights)
        moved = self._to_devices(batch, self._sharding)
        step = step_lib.make_train_step(run, optimiser)
        self._compiled = step.lower(self.state, moved, resident).compile()
        self.compiling = time.perf_counter() - began
        self._take(batch)
        jax.block_until_ready(self._take(batch))

    @property
    def device_bytes(self) -> int | None:
        """What the step needs of one device: its arguments, results and all in between."""
        told = self._compiled.memory_analysis()
        if told is None:
            return None
        parts = (told.argument_size_in_bytes, told.output_size_in_bytes, told.temp_size_in_bytes)
        return sum(parts) - told.alias_size_in_bytes

    def _take(self, batch):
        moved = self._to_devices(batch, self._sharding)
        self.state, told = self._compiled(self.state, moved, self._resident)
        return told

    def time(self, batches: Iterator, patience: float) -> tuple[float, float]:
        """Returns the seconds of a step, and the share of them in which the input was waited for.

        As in training, a step is looked at while the next one computes.
        """
        began = now = time.perf_counter()
        waited, count, pending = 0.0, 0, None
        while count < _STEPS and (count < 2 or now - began < patience):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            told = self._take(batch)
            jax.block_until_ready(pending)
            pending, count, now = told, count + 1, time.perf_counter()
        jax.block_until_ready(pending)
        spent = time.perf_counter() - began
        return spent / count, waited / spent


def _evaluation(run: run_lib.Run, weights, records) -> float:
    """Returns the seconds that it takes to predict a split, from a few batches of it."""
    from input_pipeline import batching

    size = run.config.eval.batch_size
    some = records.take(slice(_EVAL_BATCHES * size))
    step = evaluate.make_predict_step(run)
    kept = features.compute(run, weights, some) if run.config.model.keep_features else None
    batches = batching.eval_batches(some, run.config, kept)
    evaluate.predict(run, step, weights, some, batches)  # compiles
    began = time.perf_counter()
    evaluate.predict(run, step, weights, some, batches)
    times = math.ceil(len(records) / size) / math.ceil(len(some) / size)
    return (time.perf_counter() - began) * times


def evaluations(config: Config, examples: int, steps: int) -> int:
    """Counts how often a run validates.

    Args:
      config: of the run.
      examples: in the training split.
      steps: of the whole run.
    """
    return sum(evaluate.is_due(config, examples, step, steps) for step in range(1, steps + 1))


def describe(config: Config, splits: Mapping[str, Any], cost: Cost) -> Finding:
    """Says what the whole run will cost.

    Args:
      config: of the run.
      splits: `input_pipeline.Records` by split.
      cost: of its parts.
    """
    from input_pipeline import batching

    examples, size = len(splits["train"]), config.train.batch_size
    steps = batching.steps_per_run(config, examples)
    times = evaluations(config, examples, steps)
    scored = sum(len(splits[name]) for name in evaluate.held_out(splits))
    each = cost.evaluation / len(splits["val"])
    evaluating = times * cost.evaluation + scored * each
    total = cost.features + cost.compiling + steps * cost.step + evaluating
    limit = 3600 * config.train.max_hours
    data = {
        **dataclasses.asdict(cost),
        "images_per_s": size / cost.step,
        "steps": steps,
        "evaluations": times,
        "hours": total / 3600,
    }
    memory = f"the process held {_bytes(cost.host_bytes)}"
    if cost.device_bytes is not None:
        memory = f"{_bytes(cost.device_bytes)} of memory a device{_room()}; {memory}"
    message = (
        f"{1e3 * cost.step:.4g} ms a step, {size / cost.step:.4g} images/s, waits for input "
        f"{cost.waiting:.0%}; {steps} steps and {times} evaluations of {cost.evaluation:.2g} s "
        f"take about {_duration(total)}, to compile {cost.compiling:.2g} s; {memory}"
    )
    if limit and total > limit:
        done = int(np.clip((limit / total) * steps, 0, steps))
        message = (
            f"train.max_hours={config.train.max_hours:g} ends the run near step {done}; {message}"
        )
        return Finding(WARN, NAME, message, data=data)
    if cost.waiting > 0.5:
        advice = "keep decoded pictures with data.cache, or set augment.where='device'"
        return Finding(
            WARN, NAME, f"{message}; the input is what a step waits for: {advice}", data=data
        )
    return Finding(OK, NAME, message, data=data)


def _room() -> str:
    """Says how much memory a device has, where it tells."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    return f" of {_bytes(limit)}" if limit else ""


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""A training step of this project, on a batch that lies on the devices already."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from heatmap import hardware, optim
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.config import Config
from heatmap.keypoints import KeypointSet
from heatmap.models import norm, ops, stem
from heatmap.step import make_train_step, work_of
from input_pipeline import batching


def key_points(config: Config) -> KeypointSet:
    """Returns four points of two lines where the loss exchanges ends, otherwise five."""
    if config.loss.interchangeable:
        return KeypointSet(tuple("abcd"), interchangeable_pairs=((0, 1), (2, 3)))
    return KeypointSet(tuple("abcde"))


def random_batch(config: Config, count: int) -> batching.Batch:
    """Draws pictures and points."""
    rng = np.random.default_rng(0)
    (height, width), size = config.data.image_size, config.train.batch_size
    picture = (size, height, width, config.data.channels)
    return {
        "image": rng.integers(0, 256, picture, dtype=np.uint8),
        "keypoints": rng.uniform(0, (width, height), (size, count, 2)).astype(np.float32),
        "visibility": np.ones((size, count), np.int32),
        "_mask": np.ones(size, np.float32),
    }


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Has networks use XLA's own operators and gradients while they are traced."""
    with (
        mock.patch.object(ops, "conv_3x3", ops.plain_conv),
        mock.patch.object(ops, "conv_transpose_4x4", ops.plain_conv_transpose),
        mock.patch.object(ops, "max_pool_2x2", ops.plain_max_pool),
        mock.patch.object(norm, "norm_relu", _plain_norm_relu),
        mock.patch.object(stem, "conv_norm_relu_pool", stem.plain_conv_norm_relu_pool),
    ):
        yield


def _plain_norm_relu(x, scale, bias, pool):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = nnx.relu((x - mean) * (lax.rsqrt(var + 1e-5) * scale) + bias)
    return (ops.plain_max_pool(y) if pool else y), mean, var


class Stepper:
    """A run that takes training steps, on one batch or on those of its input."""

    def __init__(self, config: Config, plain: bool = False, points: KeypointSet | None = None):
        """Builds the run.

        Args:
          config: of the run.
          plain: with the operators of `plain_operators`, not our own.
          points: that it learns; default: `key_points`.
        """
        points = points or key_points(config)
        self._plain = plain
        self._run = run_lib.build(config, points)
        self._optimiser, _ = optim.create(config.optim, 1000)
        self._train_step = make_train_step(self._run, self._optimiser)
        averaged = config.optim.ema_decay > 0
        self._state = state_lib.new_state(self._run.weights, self._optimiser, averaged)
        self._sharding = state_lib.sharded(self._run.mesh)
        batch = batching.to_devices(random_batch(config, points.count), self._sharding)
        nothing: dict[str, jax.Array] = {}  # else lies on the devices
        self._arguments = (batch, nothing)
        self._resident: dict[str, jax.Array] | None = None

    def _work(self) -> float:
        """Counts the floating-point operations of a step, as the plain operators need them."""
        with plain_operators(), jax.set_mesh(self._run.mesh):
            return work_of(self._run, self._optimiser, self._state, *self._arguments)

    def program(self) -> str:
        """Returns the compiled step as text."""
        with jax.set_mesh(self._run.mesh):
            return self._train_step.lower(self._state, *self._arguments).compile().as_text() or ""

    def facts(self) -> dict[str, Any]:
        """Says how much work a step is, what this machine can do, and with what it does it."""
        devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
        peak = hardware.peak(jax.devices()) or matmul_peak()
        return {"work": self._work(), "peak": peak, "devices": devices}

    def steps(self, count: int) -> float:
        """Takes steps on the one batch and returns the seconds of one."""
        return self._timed(itertools.repeat(self._arguments, count))

    def fed(self, batches: Iterator[batching.Batch], records: Any, count: int) -> float:
        """Takes steps on batches from the input, and returns the seconds of one.

        Args:
          batches: from `batching.train_batches`.
          records: that they are of; their pictures are placed on the devices if they lie there.
          count: of steps.
        """
        if self._resident is None:
            everywhere = state_lib.replicated(self._run.mesh)
            self._resident = batching.resident_pictures(records, self._run.config.data, everywhere)
        return self._timed(
            (batching.to_devices(next(batches), self._sharding), self._resident)
            for _ in range(count)
        )

    def _timed(self, arguments: Iterable[tuple[Any, Any]]) -> float:
        began = time.perf_counter()
        operators = plain_operators() if self._plain else contextlib.nullcontext()
        count = 0
        with operators, jax.set_mesh(self._run.mesh):
            for batch, placed in arguments:
                self._state, told = self._train_step(self._state, batch, placed)
                count += 1
            jax.block_until_ready(told)
        return (time.perf_counter() - began) / count


def matmul_peak(size: int = 2048, repeats: int = 8) -> float:
    """Returns the best floating-point operations per second of a float32 matrix product."""
    matrix = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a).lower(matrix).compile()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        product(matrix).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)

"""What `heatmap.predict` asks of this project, on a batch that lies on the devices already."""

import time
from typing import Any

import jax

from benchmarks.step_jax import key_points, random_batch
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.config import Config
from heatmap.inference.predictor import Predictor
from input_pipeline import batching


class Reader:
    """A predictor of one fresh model, and a batch for it."""

    def __init__(self, config: Config):
        points = key_points(config)
        self._model = Predictor([run_lib.build(config, points)])
        batch = random_batch(config, points.count)
        self._images = batching.to_devices(batch, state_lib.sharded(self._model.mesh))["image"]

    def facts(self) -> dict[str, Any]:
        """Says on what this runs."""
        return {"devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}"}

    def predictions(self, count: int) -> float:
        """Reads points off the batch, again and again, and returns the seconds of one time."""
        began = time.perf_counter()
        for _ in range(count):
            found = self._model(self._images)
        jax.block_until_ready(found)
        return (time.perf_counter() - began) / count

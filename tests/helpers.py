"""What several test files share."""

import functools
import json

import jax
import numpy as np
from hypothesis import settings

from configs import common
from heatmap import config as config_lib
from heatmap import decoding

# Property-based tests draw the same examples every time, and compile inside the first one.
properties = settings(max_examples=30, deadline=None, derandomize=True)

# For what runs a few times: compiling takes longest here, and LLVM's optimisations are most of it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
decode = quick_jit(decoding.decode, static_argnames="config")

# What each model needs besides its name, to be built on small pictures without weights.
MODEL_SETTINGS = {
    "unet": {"loss.name": "mse"},
    "regression": {"loss.name": "coordinate_mse"},
    "vit": {
        "loss.name": "mse",
        "data.channels": 3,
        "model.backbone": "tiny16",
        "model.backbone_init": "random",
    },
}
# A run of seconds on the pictures of `conftest.write_spots`. Runs that change none of the numbers
# in its programs, such as sizes and rates, find them compiled by whichever test came first.
TINY = {
    "data.name": "simple_json",
    "data.image_size": (32, 32),
    "targets.heatmap_size": (16, 16),
    "targets.sigma": 1.0,
    "optim.learning_rate": 3e-3,
    "train.steps": 10,
    "train.batch_size": 8,
    "eval.batch_size": 4,
    "eval.sheet_examples": 0,
    "log.tensorboard": False,
}


def make_config(**overrides):
    """Returns the typed default config with fields changed.

    Args:
      **overrides: dotted names, as in `make_config(**{'targets.sigma': 1.0, 'train.epochs': 3})`.
        A length in epochs switches steps off and the other way round, as on the command line.
    """
    config = common.get_config()
    config.update_from_flattened_dict(overrides)
    return config_lib.from_mapping(config_lib.flag_overrides(config.to_dict(), overrides))


def finish(job, **scores):
    """Leaves what a run of `launch.jobs.Job` leaves at its end: its metrics and its mark."""
    job.workdir.mkdir(parents=True)
    (job.workdir / "metrics.json").write_text(json.dumps(scores))
    job.mark_finished()


def loss_of_each_step(folder) -> np.ndarray:
    """Reads [steps], the losses in the events for TensorBoard, to all their digits."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    told = {
        e.step: float(make_ndarray(e.tensor_proto)) for e in events.Reload().Tensors("train/loss")
    }
    return np.array([told[step] for step in sorted(told)])

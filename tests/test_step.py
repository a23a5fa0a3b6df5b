"""Steps by themselves; tests/test_state.py takes them on several devices."""

import jax
import numpy as np
import optax
import pytest

from heatmap import run, step
from heatmap.keypoints import KeypointSet
from tests.helpers import MODEL_SETTINGS, make_config

SMALL = {"data.image_size": (32, 32), "targets.heatmap_size": (8, 8)}
SGD = optax.sgd(1e-3)


def work(name: str, batch: int, **overrides) -> float:
    """Counts the operations of a step without building anything."""
    config = make_config(**{**SMALL, **MODEL_SETTINGS[name], "model.name": name, **overrides})
    built = run.build(config, KeypointSet(tuple("abc")))
    pictures = {
        "image": jax.ShapeDtypeStruct((batch, 32, 32, config.data.channels), np.uint8),
        "keypoints": jax.ShapeDtypeStruct((batch, 3, 2), np.float32),
        "visibility": jax.ShapeDtypeStruct((batch, 3), np.int32),
        "_mask": jax.ShapeDtypeStruct((batch,), np.float32),
    }
    state = step.first_state(built, SGD)[1]
    with jax.set_mesh(built.mesh):
        return step.work_of(built, SGD, state, pictures, {})


@pytest.mark.parametrize("name", ["vit", "unet"])
def test_twice_the_pictures_are_twice_the_work(name):
    assert 1.9 < work(name, 32) / work(name, 16) < 2.01  # the optimiser's part does not grow


@pytest.mark.slow
def test_what_is_computed_again_is_no_work():
    learning = {"model.freeze_backbone": False}
    assert work("vit", 8, **learning) == work("vit", 8, **learning, **{"model.remat": True})
    assert work("vit", 8, **learning) > work("vit", 8)

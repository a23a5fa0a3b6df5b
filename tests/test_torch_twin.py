"""The state dicts for PyTorch: the twin that loads them gives what our network gives."""

import dataclasses

import jax
import numpy as np
import pytest

from heatmap import evaluate
from heatmap import run as run_lib
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.train import train
from tests.test_train import tiny

torch = pytest.importorskip("torch")

from benchmarks import to_pth, torch_twin  # noqa: E402

POINTS = KeypointSet(("a", "b", "c"))
REGRESSION = {"model.name": "regression", "loss.name": "coordinate_mse"}
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), dtype=np.uint8)


def drawn_run(**overrides):
    """A run, every weight and statistic of which is drawn."""
    run = run_lib.build(tiny("", **overrides), POINTS)
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if path[-1].key == "var":
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        spread = leaf[..., 0].size ** -0.5 if leaf.ndim > 1 else 0.3
        return rng.normal(float(path[-1].key == "scale"), spread, leaf.shape).astype(np.float32)

    return dataclasses.replace(run, weights=jax.tree_util.tree_map_with_path(draw, run.weights))


def assert_same(run, net):
    ours = np.asarray(evaluate.make_look_step(run)(run.weights, PIXELS)[0])
    ours = ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours.reshape(len(ours), -1)
    with torch.no_grad():
        theirs = net.eval()(torch.tensor(PIXELS).permute(0, 3, 1, 2) / 255).numpy()
    assert np.std(theirs) > 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("overrides", [{}, {"model.skip": False}, REGRESSION])
def test_the_twin_gives_the_same_output(overrides):
    run = drawn_run(**overrides)
    assert_same(run, torch_twin.twin(run))


def test_the_state_dict_of_a_trained_run_is_read_by_the_plain_class(tiny_root, tmp_path):
    train(tiny(tiny_root, **REGRESSION, **{"train.steps": 3}), tmp_path / "run")
    to_pth.main([str(tmp_path / "run"), str(tmp_path / "model.pth")])
    run = run_lib.open_run(tmp_path / "run")
    net = torch_twin.RegressionNet(run.points.count)
    net.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert_same(run, net)


def test_a_network_without_a_twin_is_refused():
    run = run_lib.build(tiny("", **{"targets.heatmap_size": (8, 8)}), POINTS)
    with pytest.raises(UserError, match=r"maps of \(8, 8\) has no twin"):
        torch_twin.twin(run)

"""The ten tests that the specification of experiment 004 lists, in its order and by its names.

Each is of configs/beetles.py itself: 256×256 pixels, maps of 64×64, σ = 2, the points of the beetle
readers. Other files test the same parts over their whole range.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import input_pipeline
from configs import beetles
from heatmap import config as config_lib
from heatmap import decoding, geometry, losses, models, objective, targets
from heatmap.keypoints import LABELLED, UNKNOWN
from heatmap.models.heads import DeconvHead
from heatmap.models.rngs import Rngs
from heatmap.train import train
from input_pipeline.beetles import POINTS
from tests import beetles as layouts

WIDTH, LENGTH = [0, 1], [2, 3]  # the maps of each line


def recipe(**overrides):
    """The experiment's config, with the two-block backbone that needs no weights."""
    small = {"model.backbone": "tiny16", "model.backbone_init": "random"}
    config = beetles.get_config()
    config.update_from_flattened_dict(small | overrides)
    return config_lib.from_mapping(config.to_dict())


RECIPE = recipe()
SIZE, MAPS = RECIPE.data.image_size, RECIPE.targets.heatmap_size


def batch_of(keypoints, visibility):
    return {
        "keypoints": jnp.asarray(keypoints, jnp.float32),
        "visibility": jnp.asarray(visibility),
        "_mask": jnp.ones(len(keypoints), jnp.float32),
    }


def random_batch(seed=0, size=3):
    """Maps, and labels inside the picture, of a few specimens."""
    rng = np.random.default_rng(seed)
    maps = jnp.asarray(rng.normal(0, 0.3, (size, *MAPS, 4)), jnp.float32)
    return maps, batch_of(rng.uniform(20, 235, (size, 4, 2)), np.full((size, 4), LABELLED))


def loss_of(maps, batch):
    return losses.mean(*objective.compute(RECIPE, POINTS, maps, batch))


def decoded(maps, **decoder):
    config = recipe(**{f"decoder.{key}": value for key, value in decoder.items()})
    return np.asarray(decoding.decode(config, jnp.asarray(maps, jnp.float32)).keypoints)[0]


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    """Drawn specimens in the three real layouts."""
    root = tmp_path_factory.mktemp("specimens")
    for name, write in (
        ("hawaii", layouts.write_hawaii),
        ("beetlepalooza", layouts.write_beetlepalooza),
        ("biorepo", layouts.write_biorepo),
    ):
        (root / name).mkdir()
        write(root / name, cell=120)
    return root


def test_gaussian_heatmap_generation():
    x, y, sigma = 101.5, 61.5, RECIPE.targets.sigma  # the centre of heatmap pixel (25, 15)
    maps = targets.render(np, np.full((4, 2), (x, y)), RECIPE)
    assert maps.shape == (64, 64, 4)
    for k in range(4):
        assert np.unravel_index(maps[..., k].argmax(), MAPS) == (15, 25)
        assert maps[15, 25, k] == 1.0
        # By the definition of σ: e^(-1/2) one σ away, e^(-1) one σ along both axes, e^(-2) at 2 σ.
        assert maps[15, 25 + int(sigma), k] == pytest.approx(np.exp(-0.5))
        assert maps[15 - int(sigma), 25 + int(sigma), k] == pytest.approx(np.exp(-1.0))
        assert maps[15 + 2 * int(sigma), 25, k] == pytest.approx(np.exp(-2.0))
        assert maps[50, 50, k] == pytest.approx(0.0, abs=1e-12)
        assert maps[..., k].sum() == pytest.approx(2 * np.pi * sigma**2, rel=1e-3)


def test_soft_argmax_round_trip():
    """Soft-argmax reads log-probabilities, which is what cross-entropy trains; DARK reads both."""
    points = np.array([[60.0, 61.0], [100.3, 88.7], [127.5, 130.9], [180.2, 199.6]])
    maps = targets.render(np, points, RECIPE)[None]
    soft = {"force": True, "name": "soft_argmax"}
    np.testing.assert_allclose(decoded(np.log(maps + 1e-30), **soft), points, atol=1e-3)
    np.testing.assert_allclose(decoded(maps), points, atol=1e-3)
    # The literal soft-argmax of Gaussians of height one is nearly the centre, whatever the point.
    centre = (np.array(SIZE) - 1) / 2
    assert np.abs(decoded(maps, **soft) - centre).max() < 2


def test_loss_masking(specimens):
    """BeetlePalooza's widths are not used: as it is read, its width maps learn nothing."""
    data = recipe(**{"data.name": "beetlepalooza", "data.root": str(specimens / "beetlepalooza")})
    records = input_pipeline.read(data.data)
    trained = records.take((records.left_out == "") & records.labelled[:, LENGTH].all(1))
    assert len(trained) > 20
    visibility = np.where(trained.labelled[:3], LABELLED, UNKNOWN)
    batch = batch_of(trained.keypoints[:3], visibility)
    maps, _ = random_batch()
    gradient = np.asarray(jax.grad(loss_of)(maps, batch))
    assert np.all(gradient[..., WIDTH] == 0.0)
    assert np.abs(gradient[..., LENGTH]).max() > 0
    # Normalised by what is active: the same as the mean over the two length maps alone.
    truth = np.asarray(targets.render(jnp, batch["keypoints"], RECIPE))
    squared = np.stack(
        [(maps[..., LENGTH] - truth[..., order]) ** 2 for order in (LENGTH, LENGTH[::-1])]
    )
    expected = squared.mean(axis=(2, 3)).sum(-1).min(0).sum() / (2 * len(visibility))
    assert float(loss_of(maps, batch)) == pytest.approx(expected, rel=1e-5)


def test_decoder_output_shape():
    head = nnx.eval_shape(lambda: DeconvHead(384, (16, 16), MAPS, 4, jnp.float32, Rngs(0)))
    features = jax.ShapeDtypeStruct((2, 16, 16, 384), jnp.float32)
    assert nnx.eval_shape(lambda h, x: h(x, None), head, features).shape == (2, 64, 64, 4)


def test_udpp_coordinate_round_trip():
    """hx = (x + 0.5) / 4 - 0.5 and back, written out; through maps and decoder too."""
    x = np.linspace(-0.5, 255.5, 513)
    heatmap_x = geometry.scale(x, 1 / 4)
    np.testing.assert_allclose(heatmap_x, (x + 0.5) / 4 - 0.5, atol=1e-12)
    np.testing.assert_allclose(geometry.scale(heatmap_x, 4), x, atol=1e-12)
    np.testing.assert_allclose(geometry.scale(np.array([0.0, 63.0]), 4), [1.5, 253.5])
    points = np.random.default_rng(0).uniform(20, 235, (4, 2))
    np.testing.assert_allclose(decoded(targets.render(np, points, RECIPE)[None]), points, atol=1e-3)


def test_permutation_invariant_loss():
    maps, batch = random_batch()
    for order in ([1, 0, 2, 3], [0, 1, 3, 2], [1, 0, 3, 2]):
        swapped = {**batch, "keypoints": batch["keypoints"][:, jnp.array(order)]}
        np.testing.assert_allclose(loss_of(maps, swapped), loss_of(maps, batch), rtol=1e-5)
    # A perfect answer in the other order costs nothing; points of different lines do not swap.
    perfect = targets.render(jnp, batch["keypoints"], RECIPE)
    assert float(loss_of(perfect[..., jnp.array([1, 0, 3, 2])], batch)) == 0.0
    assert float(loss_of(perfect[..., jnp.array([2, 1, 0, 3])], batch)) > 1e-3
    # And never more than in the order of the labels.
    squared = (maps - targets.render(jnp, batch["keypoints"], RECIPE)) ** 2
    assert float(loss_of(maps, batch)) <= float(squared.mean()) + 1e-7


def test_token_reshape_spatial_correctness():
    """What is changed in one patch of the picture changes the features there the most."""
    model = models.create(
        recipe(**{"data.image_size": (96, 160), "targets.heatmap_size": (24, 40)}), 4, Rngs(0)
    )
    rng = np.random.default_rng(0)
    picture = rng.normal(size=(1, 96, 160, 3)).astype(np.float32)
    see = nnx.jit(lambda backbone, image: backbone(image)[0])
    before = np.asarray(see(model.backbone, picture))
    assert before.shape == (1, 6, 10, 64)  # neither the CLS token nor the registers are in it
    for row, column in ((0, 0), (0, 9), (5, 0), (2, 7), (4, 3)):
        touched = picture.copy()
        touched[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] *= -1
        change = np.abs(np.asarray(see(model.backbone, touched)) - before).sum((0, -1))
        assert np.unravel_index(change.argmax(), change.shape) == (row, column)


def test_border_coordinate_reachability():
    """A mean of pixel centres ends at x = 1.5 and 253.5; DARK and the grid to the edges do not."""
    soft = {"name": "soft_argmax", "force": True}

    def all_on(share):  # of the mass on the second pixel from the border, on either side
        maps = np.full((1, *MAPS, 2), -1e4, np.float32)
        for k, (outer, inner) in enumerate(((0, 1), (63, 62))):
            maps[:, 31, outer, k], maps[:, 31, inner, k] = np.log(1 - share), np.log(share + 1e-30)
        return maps

    centres = decoded(all_on(0.0), **soft)[:, 0]
    np.testing.assert_allclose(centres, [1.5, 253.5], atol=1e-3)
    # hx = -0.375 is x = 0; on the grid of 64 pixels stretched to [-0.5, 63.5] that is a mean of
    # 0.125 · 63 / 64 pixels from the border.
    edges = decoded(all_on(0.125 * 63 / 64), grid="edges", **soft)[:, 0]
    np.testing.assert_allclose(edges, [0.0, 255.0], atol=1e-3)
    corners = np.array([[0.0, 0.0], [255.0, 0.0], [0.0, 255.0], [255.0, 255.0]])
    np.testing.assert_allclose(
        decoded(targets.render(np, corners, RECIPE)[None]), corners, atol=1e-2
    )


def test_permutation_and_mask_combined():
    """Masked widths contribute exactly zero, whatever their maps and labels, in either order."""
    maps, batch = random_batch()
    visibility = batch["visibility"].at[:, jnp.array(WIDTH)].set(UNKNOWN)
    masked = {**batch, "visibility": visibility}
    expected = loss_of(maps, masked)
    for seed in (1, 2):
        other, labels = random_batch(seed)
        changed = maps.at[..., jnp.array(WIDTH)].set(1e3 * other[..., jnp.array(WIDTH)])
        swapped = labels["keypoints"][:, jnp.array(WIDTH[::-1])]
        keypoints = batch["keypoints"].at[:, jnp.array(WIDTH)].set(swapped)
        assert float(loss_of(changed, {**masked, "keypoints": keypoints})) == float(expected)
    total, weight = objective.compute(RECIPE, POINTS, maps, masked)
    assert float(weight) == 2 * len(maps)
    length_swapped = {**masked, "keypoints": batch["keypoints"][:, jnp.array([0, 1, 3, 2])]}
    np.testing.assert_allclose(objective.compute(RECIPE, POINTS, maps, length_swapped)[0], total)


@pytest.mark.slow
def test_smoke_run_of_500_steps(specimens, tmp_path):
    """A frozen random backbone on the three layouts: the loss falls and every score is finite.

    At 96×96 pixels instead of 256×256, to take a minute.
    """
    config = recipe(
        **{
            "data.root": str(specimens),
            "data.image_size": (96, 96),
            "targets.heatmap_size": (24, 24),
            "train.steps": 500,
            "train.batch_size": 8,
            "train.eval_every_steps": 100,
            "eval.batch_size": 32,
        }
    )
    scores = train(config, tmp_path)
    log = json.loads((tmp_path / "training_log.json").read_text())["vit"]
    assert [line["step"] for line in log] == [100, 200, 300, 400, 500]
    # Maps of nothing cost the mean square of a target; learning where to look costs less.
    nothing = np.mean(targets.render(np, np.array([[47.5, 47.5]]), config) ** 2)
    fell = [line["train_loss"] for line in log]
    assert fell[-1] < 0.9 * fell[0]
    assert fell[-1] < 0.9 * nothing
    assert {"val/hawaii/length_line_err_cm", "val/biorepo/point_err_cm"} <= scores.keys()
    whole = {k: v for k, v in scores.items() if "/species/" not in k}  # some lack a scale bar
    assert [k for k, v in whole.items() if not np.isfinite(v)] == []

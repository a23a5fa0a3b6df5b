"""Lengths in pixels, centimetres and per cent: by hand, by symmetry, by data set and species."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import evaluate, geometry, measures, metrics
from heatmap.decoding import Decoded
from heatmap.errors import UserError
from heatmap.predictions import Predictions
from input_pipeline import augment, batching
from input_pipeline.beetles import POINTS
from input_pipeline.records import Records
from tests.helpers import make_config, properties

CONFIG = make_config().eval


def predictions(count=8, seed=0, **columns) -> Predictions:
    """Beetles predicted a few pixels off, in the other order every second time."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(5, 95, (count, 4, 2))
    predicted = truth + rng.normal(0, 3, truth.shape)
    predicted[::2] = predicted[::2][:, [1, 0, 3, 2]]
    values = {
        "ids": np.array([f"picture{i}" for i in range(count)]),
        "instances": np.zeros(count, int),
        "groups": np.full(count, "tray"),
        "predicted": predicted,
        "score": np.full((count, 4), np.nan),
        "entropy": np.full((count, 4), np.nan),
        "height": np.full((count, 4), np.nan),
        "truth": truth,
        "weight": np.ones((count, 4)),
        "boxes": np.tile([0.0, 0, 100, 100], (count, 1)),
        "areas": np.full(count, 1e4),
        "sizes": np.tile([100, 100], (count, 1)),
        "px_per_cm": rng.uniform(50, 400, count),
        "species": np.array(["a", "b"] * count)[:count],
        "dataset": np.full(count, ""),
    }
    return Predictions(**{**values, **columns})


def lines(p):
    return measures.lines(p, POINTS, CONFIG)


def test_by_hand():
    # Width 30 px in truth and 36 predicted, length 100 and 95, at 200 px to the centimetre.
    truth = np.array([[[10, 0], [40, 0], [0, 0], [60, 80]]], float)
    predicted = np.array([[[43, 0], [7, 0], [0, 0], [57, 76]]], float)  # the width back to front
    scores = lines(predictions(1, truth=truth, predicted=predicted, px_per_cm=np.array([200.0])))
    assert scores["width_line_err_cm"] == pytest.approx(6 / 200)
    assert scores["length_line_err_cm"] == pytest.approx(5 / 200)
    assert scores["line_err_cm"] == pytest.approx(5.5 / 200)
    assert scores["width_line_err_pct"] == pytest.approx(20.0)
    assert scores["length_line_err_pct"] == pytest.approx(5.0)
    assert scores["width_line_err_px"] == pytest.approx(6.0)
    assert scores["point_err_cm"] == pytest.approx((3 + 3 + 0 + 5) / 4 / 200)
    assert scores["point_err_cm/max"] == pytest.approx(5 / 200)
    assert scores["line_err_cm/excluded"] == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_every_number_equals_a_loop(seed):
    rng = np.random.default_rng(seed)
    p = predictions(30, seed, weight=(rng.random((30, 4)) < 0.85).astype(float))
    p.px_per_cm[::5] = np.nan
    errors: dict[str, list[float]] = {}
    excluded = 0
    for predicted, truth, weight, scale in zip(
        p.predicted, p.truth, p.weight, p.px_per_cm, strict=True
    ):
        for name, a, b in POINTS.measurements:
            orders = []
            for order in ([a, b], [b, a]):
                apart = np.linalg.norm(predicted[[a, b]] - truth[order], axis=1)
                orders.append([d for d, w in zip(apart, weight[order], strict=True) if w])
            best = min(orders, key=sum)
            if scale == scale:
                errors.setdefault("point_err_cm", []).extend(d / scale for d in best)
            if weight[a] and weight[b]:
                true = np.linalg.norm(truth[a] - truth[b])
                off = abs(np.linalg.norm(predicted[a] - predicted[b]) - true)
                for key in (f"{name}_line_err", "line_err"):
                    errors.setdefault(f"{key}_px", []).append(off)
                    errors.setdefault(f"{key}_pct", []).append(100 * off / true)
                    if scale == scale:
                        errors.setdefault(f"{key}_cm", []).append(off / scale)
                excluded += scale != scale
    scores = lines(p)
    for key, values in errors.items():
        assert scores[key] == pytest.approx(np.mean(values)), key
        assert scores[f"{key}/median"] == pytest.approx(np.median(values))
        assert scores[f"{key}/p95"] == pytest.approx(np.quantile(values, 0.95))
        assert scores[f"{key}/max"] == pytest.approx(np.max(values))
    assert scores["line_err_cm/excluded"] == excluded > 0
    assert {key.split("/")[0] for key in scores} == set(errors)


@properties
@given(seed=st.integers(0, 999))
def test_the_order_of_the_ends_does_not_matter(seed):
    p = predictions(seed=seed)
    swap = [1, 0, 3, 2]
    rng = np.random.default_rng(seed)
    rows = rng.random(len(p.ids)) < 0.5
    for column in ("truth", "predicted"):
        values = getattr(p, column).copy()
        values[rows] = values[rows][:, swap]
        changed = lines(dataclasses.replace(p, **{column: values}))
        for key, value in lines(p).items():
            assert changed[key] == pytest.approx(value, abs=1e-12), key


@properties
@given(seed=st.integers(0, 999), factor=st.floats(0.2, 5.0))
def test_centimetres_and_per_cent_do_not_mind_the_resolution(seed, factor):
    p = predictions(seed=seed)
    finer = dataclasses.replace(
        p,
        truth=geometry.scale(p.truth, factor),
        predicted=geometry.scale(p.predicted, factor),
        px_per_cm=p.px_per_cm * factor,
    )
    before, after = lines(p), lines(finer)
    for key, value in before.items():
        if "_px" not in key:
            assert after[key] == pytest.approx(value, rel=1e-9), key
        else:
            assert after[key] == pytest.approx(value * factor, rel=1e-9), key


def test_a_picture_without_scale_counts_in_pixels_and_per_cent_only():
    p = predictions()
    p.px_per_cm[:] = np.nan
    p.px_per_cm[3] = 0.0  # as little a scale as none
    scores = lines(p)
    assert np.isnan(scores["length_line_err_cm"])
    assert np.isnan(scores["point_err_cm/median"])
    assert scores["line_err_cm/excluded"] == 16.0
    assert scores["length_line_err_pct"] == lines(predictions())["length_line_err_pct"]


def test_a_line_with_one_labelled_end_is_no_line_but_its_point_counts():
    p = predictions()
    p.weight[:, 0] = 0
    scores = lines(p)
    assert np.isnan(scores["width_line_err_cm"])
    assert scores["line_err_cm"] == scores["length_line_err_cm"]
    assert scores["point_err_cm"] > 0


def test_a_lost_prediction_is_infinitely_wrong_without_a_warning():
    p = predictions()
    p.predicted[0, 2] = np.nan
    p.predicted[1, :, 0] = -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = lines(p)
    assert scores["length_line_err_cm"] == np.inf
    assert np.isfinite(scores["length_line_err_cm/median"])
    assert np.isfinite(scores["width_line_err_pct/median"])


def test_points_without_measurements_have_no_lines():
    assert measures.lines(predictions(), dataclasses.replace(POINTS, measurements=()), CONFIG) == {}


# --- by data set and species ---


def mixed():
    species = np.array(["MECKON", "TREOBT", "", "A/B"] * 3)
    return predictions(12, species=species, dataset=np.array(["hawaii"] * 8 + ["biorepo"] * 4))


def test_each_data_set_is_scored_by_itself():
    p = mixed()
    scores = metrics.score(p, POINTS, CONFIG)
    for name in ("hawaii", "biorepo"):
        own = p.take(p.dataset == name)
        alone = metrics.score(
            dataclasses.replace(own, dataset=np.full(len(own.ids), "")), POINTS, CONFIG
        )
        for key, value in alone.items():
            np.testing.assert_equal(scores[f"{name}/{key}"], value, err_msg=key)
    assert scores["line_err_cm"] == lines(p)["line_err_cm"]
    assert scores["hawaii/pck@0.1/unordered"] >= 0


def test_each_species_of_a_data_set_is_scored_in_centimetres_and_per_cent():
    p = mixed()
    scores = metrics.score(p, POINTS, CONFIG)
    own = p.take((p.dataset == "hawaii") & (p.species == "TREOBT"))
    key = "hawaii/species/TREOBT/length_line_err_cm"
    assert scores[key] == lines(own)["length_line_err_cm"]
    for statistic in ("median", "p95", "max"):
        assert scores[f"{key}/{statistic}"] == lines(own)[f"length_line_err_cm/{statistic}"]
    assert not any("_px" in name for name in scores if "/species/" in name)
    species = {key.split("/")[2] for key in scores if key.startswith("hawaii/species/")}
    assert species == {"MECKON", "TREOBT", "A_B"}  # a slash would divide the name
    fewer = dataclasses.replace(CONFIG, metrics=("error_px",))
    assert not any("species" in key for key in metrics.score(p, POINTS, fewer))


def test_records_that_name_no_data_set_have_one_set_of_scores():
    scores = metrics.score(predictions(), POINTS, CONFIG)
    assert not any(key.startswith("/") or "species" in key for key in scores)


def test_the_table_quotes_lines_by_data_set_and_no_species():
    scores = {f"val/{k}": v for k, v in metrics.score(mixed(), POINTS, CONFIG).items()}
    rows = [line.split()[0] for line in evaluate.table(scores).splitlines()[1:]]
    for name in ("hawaii", "biorepo"):
        assert f"{name}/length_line_err_cm" in rows
        assert f"{name}/length_line_err_pct/median" in rows
        assert f"{name}/point_err_cm" in rows
    assert not any("species" in row or "rmse" in row for row in rows)
    assert len(rows) < 45


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("val/hawaii/length_line_err_cm", False),
        ("val/hawaii/point_err_cm/median", False),
        ("val/line_err_pct/p95", False),
        ("val/hawaii/pck@0.05", True),
        ("val/hawaii/pck@0.05/unordered", True),
        ("val/pck_torso@0.1", True),
        ("val/pck_image@0.1/unordered", True),
        ("val/oks_ar", True),
        ("val/hawaii/oks_ap50", True),
        ("val/hawaii/error_px/median", False),
        ("val/hawaii/species/pronotum/length_line_err_cm", False),
        ("val/loss", False),
    ],
)
def test_a_better_score_is_known_by_its_name(name, more):
    assert metrics.better(0.6, 0.5, name) is more
    assert metrics.better(0.4, 0.5, name) is not more
    assert metrics.better(0.4, float("nan"), name)


def make_records(count=6, size=(90, 120)) -> Records:
    p = predictions(count)
    return Records(
        points=POINTS,
        ids=p.ids,
        instances=p.instances,
        groups=p.groups,
        order=np.arange(count),
        splits=np.full(count, "val"),
        keypoints=p.truth,
        labelled=p.weight > 0,
        boxes=p.boxes,
        areas=p.areas,
        sizes=np.tile(np.array(size, np.int32), (count, 1)),
        files=np.full(count, ""),
        orientations=np.ones(count, np.int32),
        px_per_cm=p.px_per_cm,
        species=p.species,
        dataset=np.full(count, "hawaii"),
        pixels=np.zeros((count, *size, 3), np.uint8),
    )


@pytest.mark.parametrize("metric", ["val/hawaii/length_line_err_cm", "val/hawaii/point_err_cm"])
def test_a_data_set_may_decide_the_best_checkpoint(metric):
    records = make_records()
    config = make_config(**{"train.best_metric": metric})
    assert evaluate.best_metric(config, records) == metric
    assert evaluate.best_metric(make_config(), records) == "val/error_px/median"
    with pytest.raises(UserError, match="did you mean 'val/hawaii/length_line_err_cm'"):
        evaluate.best_metric(
            make_config(**{"train.best_metric": "val/hawai/length_line_err_cm"}), records
        )


# --- predictions that follow the affine exactly ---


@properties
@given(
    seed=st.integers(0, 999),
    rotation=st.floats(0.0, 180.0),
    crop=st.floats(0.3, 1.0),
    ratio=st.floats(1.0, 1.5),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_scores_do_not_change_with_the_affine_that_predictions_follow(
    seed, rotation, crop, ratio, flip
):
    """Whatever crop, flip, rotation and resize the network saw, mapping back undoes it."""
    p = predictions(seed=seed)
    config = make_config(
        **{
            "augment.rotation": rotation,
            "augment.crop_scale": (crop, 1.0),
            "augment.crop_ratio": (1 / ratio, ratio),
            "augment.horizontal_flip": flip,
            "augment.vertical_flip": flip,
        }
    )
    count = len(p.ids)
    boxes = geometry.image_box(np.full((count, 2), 100))
    numbers = augment.uniforms(seed, 0, 0, count)
    seen = augment.draw(boxes, numbers, config.augment, (256, 192)).input_from_original
    in_input = geometry.apply(seen, p.predicted).astype(np.float32)  # as the devices have them
    back = geometry.apply(geometry.invert(seen), in_input.astype(np.float64))
    before = metrics.score(p, POINTS, CONFIG)
    after = metrics.score(dataclasses.replace(p, predicted=back), POINTS, CONFIG)
    for key, value in before.items():
        # float32 has the points to 3e-5 px at 256; a crop of a third doubles and triples that.
        loose = 1e-3 if "px" in key or "pct" in key else 1e-5
        assert after[key] == pytest.approx(value, rel=1e-4, abs=loose, nan_ok=True), key


@pytest.mark.parametrize(
    "overrides",
    [
        {"data.image_size": (64, 48)},
        {"data.image_size": (48, 96), "data.fit": "pad"},
        {"data.image_size": (40, 40), "data.crop": "box", "data.box_padding": 1.5},
    ],
)
def test_evaluation_maps_back_whatever_the_input_is(monkeypatch, overrides):
    """A network that is right but for a fixed shift of the original picture has that error."""
    config = make_config(**{"data.channels": 3, "eval.batch_size": 4, **overrides})
    records = make_records()
    shift = np.array([3.0, 4.0])  # 5 px
    monkeypatch.setattr(batching, "to_devices", lambda batch, _: batch)

    def step(_, batch):
        affine = batch["input_from_original"]
        truth = geometry.apply(geometry.invert(affine), batch["keypoints"])
        moved = geometry.apply(affine, truth + shift)
        blank = np.full(moved.shape[:2], np.nan)
        wide = np.full((*moved.shape[:2], 2, 2), np.nan)
        return Decoded(moved.astype(np.float32), blank, blank, blank, wide), 0.0, 1.0

    run = type("Run", (), {"config": config, "mesh": None})
    monkeypatch.setattr(evaluate.state_lib, "sharded", lambda mesh: None)
    found, _ = evaluate.predict(run, step, None, records)
    scores = metrics.score(found, POINTS, CONFIG)
    assert scores["error_px"] == pytest.approx(5.0, abs=1e-3)
    expected = np.mean(5.0 / records.px_per_cm)  # in either order of the ends about as much
    assert scores["hawaii/point_err_cm"] == pytest.approx(expected, rel=0.02)
    assert scores["hawaii/length_line_err_cm"] == pytest.approx(0.0, abs=1e-5)


# --- out of bounds ---


def test_share_of_points_out_of_their_picture():
    p = predictions(2, sizes=np.array([[100, 100], [40, 100]]))
    p.truth[0] = [[-0.5, 0], [-0.6, 5], [99.5, 99.5], [50, 99.6]]
    p.truth[1] = [[0, 39.5], [0, 39.6], [0, 99], [0, 0]]
    p.weight[1, 2] = 0
    assert metrics.error_px(p, POINTS, CONFIG)["oob_points_frac"] == pytest.approx(3 / 7)

"""Each check of the doctor by itself: it finds what was broken, that alone, and nothing where
nothing was.
"""

import dataclasses
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import decoding, geometry, prediction_table
from heatmap.checks import (
    codec,
    cost,
    duplicates,
    frames,
    outliers,
    places,
    shapes,
    sides,
    trained,
    trips,
)
from heatmap.checks.finding import FAIL, OK, WARN
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import augment, batching
from tests.helpers import make_config, properties
from tests.herds import POINTS, SIZE, exchanged, figures, herd
from tests.predicted import build

SMALL = {"data.image_size": (64, 64), "targets.heatmap_size": (32, 32), "train.batch_size": 16}


# --- shapes ---


@properties
@given(
    turn=st.floats(-3.1, 3.1), scale=st.floats(0.1, 10), x=st.floats(-500, 500), seed=st.integers(0)
)
def test_a_fit_undoes_any_move_turn_and_scale(turn, scale, x, seed):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=6) + 1j * rng.normal(size=6)
    known = rng.random((1, 6)) < 0.7
    known[0, :2] = True
    moved = scale * np.exp(1j * turn) * reference + complex(x, 7)
    a, b = shapes.fit(np.where(known, moved, 1e6), known, reference)
    np.testing.assert_allclose(a * moved + b, reference, atol=1e-6)


def test_a_fit_takes_no_mirror_for_a_turn():
    shape = shapes.complex_of(np.array([[0, 0], [10, 0], [3, 7.0]]))
    a, b = shapes.fit(shape.conj()[None], np.ones((1, 3), bool), shape)
    assert np.abs(a * shape.conj() + b - shape).max() > 1


@pytest.mark.parametrize("labels", [[], [0], [0, 1]])
def test_a_fit_needs_two_points_apart(labels):
    z = np.array([[5 + 5j, 5 + 5j, 9 + 1j]])
    known = np.zeros((1, 3), bool)
    known[0, labels] = True
    assert np.isnan(shapes.fit(z, known, np.array([0, 1, 2j]))[0]).all()


def test_the_mean_shape_is_that_of_the_body_whatever_a_few_labels_say():
    records = herd(100)
    keypoints = records.keypoints.copy()
    keypoints[:15, 3] = 0.0
    mean, *_ = shapes.mean_shape(shapes.complex_of(keypoints), records.labelled)
    body = shapes.complex_of(
        np.array([[0, -40], [-15, -22], [15, -22], [-18, 20], [18, 20], [0, 40]])
    )
    a, b = shapes.fit(body[None], np.ones((1, 6), bool), mean)
    assert np.abs(a * body + b - mean).max() < 0.06  # of the size


def test_the_mean_shape_puts_pairs_without_an_order_in_order():
    records = herd(60)
    mixed = exchanged(records, np.arange(0, 60, 2), [(1, 2)])
    z, known = shapes.complex_of(mixed.keypoints), mixed.labelled
    known[3, 1] = known[4, 2] = False
    ordered_mean, ordered, _ = shapes.mean_shape(z, known, [(1, 2)])
    a, b = shapes.fit(ordered, known, ordered_mean)
    error = np.abs(a[:, None] * ordered + b[:, None] - ordered_mean)
    assert np.median(error[:, 1]) < 0.2
    assert shapes.fit(z, known, ordered_mean)[0].shape == (60,)


# --- left and right ---


def check_sides(records):
    return sides.check(records, sides.look(records))


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("pairs", [[(1, 2)], [(1, 2), (3, 4)]])
def test_exchanged_labels_are_found_and_no_others(turned, pairs):
    rows = [3, 17, 44]
    found = check_sides(exchanged(herd(turned=turned), rows, pairs))
    assert found.level == FAIL
    names = [f"{POINTS.names[a]}/{POINTS.names[b]}" for a, b in pairs]
    for name, told in found.data.items():
        assert told["swapped"] == ([f"im{row}" for row in rows] if name in names else [])
    assert "im17" in found.message


def test_left_and_right_of_the_picture_are_no_exchange_of_those_of_the_body():
    """Labels by the picture stay on their side of it when the animal lies upside down."""
    records = herd(turned=False)
    upside_down = records.keypoints.copy()
    upside_down[:4] = 2 * upside_down[:4].mean(axis=1, keepdims=True) - upside_down[:4]
    by_body = dataclasses.replace(records, keypoints=upside_down)
    by_picture = exchanged(by_body, [0, 1, 2, 3], POINTS.flip_pairs)
    for labelled, frame in ((by_body, "body"), (by_picture, "picture")):
        found = check_sides(labelled)
        assert found.level == OK
        assert {told["frame"] for told in found.data.values()} == {frame}


def test_a_fifth_the_other_way_round_may_be_another_view():
    found = check_sides(exchanged(herd(100), range(20), POINTS.flip_pairs))
    assert found.level == WARN
    assert "other side" in found.message


def test_sides_that_lie_either_way_are_not_judged():
    found = check_sides(exchanged(herd(100), range(50), POINTS.flip_pairs))
    assert found.level == OK
    assert not any(told["told"] for told in found.data.values())


def test_a_pair_without_an_order_is_no_left_and_right():
    free = dataclasses.replace(POINTS, flip_pairs=((1, 2),), interchangeable_pairs=((1, 2),))
    records = dataclasses.replace(exchanged(herd(), [5], [(1, 2)]), points=free)
    assert check_sides(records).level == OK


def test_names_say_which_points_are_pairs():
    names = ("LeftEye", "RightEye", "hip_L", "hip_R", "l_toe", "r_toe", "leftover", "tail", "lip")
    found = sides.pairs_by_name(KeypointSet(names))
    assert found == ((0, 1), (2, 3), (4, 5))
    unpaired = dataclasses.replace(
        exchanged(herd(), [9], [(1, 2)]), points=KeypointSet(POINTS.names)
    )
    assert check_sides(unpaired).level == FAIL


@pytest.mark.parametrize(
    ("flip", "points", "level"),
    [
        (0.5, POINTS, OK),
        (0.5, KeypointSet(POINTS.names), FAIL),
        (0.0, KeypointSet(POINTS.names), OK),
        (0.5, KeypointSet(POINTS.names, interchangeable_pairs=((1, 2), (3, 4))), OK),
    ],
)
def test_a_mirror_has_to_rename_left_and_right(flip, points, level):
    found = sides.mirrored(points, make_config(**{"augment.horizontal_flip": flip}).augment)
    assert found.level == level
    assert (level == FAIL) == ("('left_ear','right_ear')" in found.message)


# --- outliers ---


def test_a_point_far_from_the_others_is_named_first():
    records = herd()
    records.keypoints[12, 5] += (150, 20)
    records.keypoints[30, 0] += (-60, 60)
    found = outliers.check(records)
    assert found.level == WARN
    listed = [(one["record"], one["point"]) for one in found.data["outliers"]]
    assert listed == [("im12", "tail"), ("im30", "nose")]
    assert found.data["outliers"][0]["error_px"] == pytest.approx(np.hypot(150, 20), rel=0.25)


def test_what_a_camera_sees_in_one_place_is_judged_by_the_picture():
    """A lever that stands still beside an animal that does not: no body has them both."""
    records = herd()
    lever = np.random.default_rng(0).normal((600, 100), 1, (80, 2))
    lever[31] += 40
    records.keypoints[:, 4] = lever
    found = outliers.check(records)
    assert [(o["record"], o["point"]) for o in found.data["outliers"]] == [("im31", "right_hip")]


def test_the_error_of_a_point_is_measured_without_the_point():
    """Moving it changes its error by just as much, and those of the others by the fit to it."""
    records = herd(bend=0.0)
    mean, z, known = shapes.mean_shape(shapes.complex_of(records.keypoints), records.labelled)
    z[7, 5] += 1000
    pixels, _ = outliers.in_body(z, known, mean)
    assert pixels[7, 5] == pytest.approx(1000, rel=1e-6)
    assert np.nanmax(np.delete(pixels, 7, axis=0)) < 1e-6


def test_missing_labels_are_no_outliers():
    records = herd()
    records.labelled[np.random.default_rng(0).random(records.labelled.shape) < 0.3] = False
    records.keypoints[~records.labelled] = 0.0
    assert outliers.check(records).level == OK


# --- labels and their pictures ---


def test_labels_of_a_larger_picture_are_out_of_the_frame():
    records = herd()
    records.keypoints[:5] = geometry.scale(records.keypoints[:5], 2.2)
    records.sizes[10:] = (1100, 1500)
    found = frames.inside(records, np.tile(np.eye(3), (80, 1, 1)), (2000, 2000))
    assert found.level == FAIL
    assert found.data["far_out"] == [f"im{i}" for i in range(5)]
    assert "1500x1100" in found.message


def test_a_point_a_little_outside_is_only_mentioned():
    records = herd()
    records.keypoints[4, 2] = (639.9, 100)
    found = frames.inside(records, np.tile(np.eye(3), (80, 1, 1)), SIZE)
    assert found.level == WARN
    assert found.data["furthest_px"] == pytest.approx(0.4)
    assert found.data["points_out_of_the_picture"] == 1


def test_labels_that_a_crop_loses_are_counted():
    records = herd()
    narrow = np.tile(geometry.crop_and_resize((160, 0, 480, 480), (64, 64)), (80, 1, 1))
    records.keypoints[3, 0] = (150, 240)
    found = frames.inside(records, narrow, (64, 64))
    assert found.level == WARN
    assert found.data["points_out_of_the_crop"] == 1


def test_labels_that_augmentation_moves_out_are_counted():
    keypoints = np.array([[[3, 4], [-0.6, 4]], [[70, 4], [63.4, 63.4]]])
    labelled = np.array([[True, True], [False, True]])
    found = frames.augmented(keypoints, labelled, (64, 64))
    assert found.level == WARN
    assert found.data["share_of_labels_lost"] == pytest.approx(1 / 3)
    assert frames.augmented(keypoints[1:], labelled[1:], (64, 64)).level == OK


@pytest.mark.parametrize("factor", [0.4, 0.5, 0.6, 1.6])
def test_labels_made_on_another_size_of_the_picture_are_suspected(factor):
    records = herd()
    records.keypoints[20:23] = geometry.scale(records.keypoints[20:23], factor)
    found = frames.scale(records)
    assert found.level == FAIL
    assert {one["record"] for one in found.data["suspected"]} <= {"im20", "im21", "im22"}
    assert found.data["suspected"][0]["factor"] == pytest.approx(factor, rel=0.25)


def test_a_small_animal_somewhere_is_no_other_scale():
    records = herd()
    records.keypoints[20] = (500, 400) + 0.3 * (records.keypoints[20] - (320, 240))
    assert frames.scale(records).level == OK


def test_points_that_are_never_labelled_or_lie_at_zero():
    records = herd()
    names = np.repeat(["train", "test"], 40)
    assert frames.labels(records, names, 0.0).level == OK
    records.keypoints[7, 1] = 0.0
    found = frames.labels(records, names, 0.0)
    assert (found.level, found.data["at_zero"]) == (WARN, ["im7"])
    records.labelled[40:, 3] = False
    records.keypoints[7, 1] = 5.0
    found = frames.labels(records, names, 0.0)
    assert found.level == WARN
    assert "left_hip in test" in found.message
    records.labelled[:40, 3] = False
    found = frames.labels(records, names, 0.0)
    assert found.level == FAIL
    assert "left_hip" in found.message


# --- duplicates ---


def pictures(count=30):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 12, 16, 3))
    return np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2).astype(np.uint8)


def compared(found, splits=None):
    names = np.array(splits or ["train"] * 20 + ["test"] * (len(found) - 20))
    ids = np.array([f"im{i}" for i in range(len(found))])
    return duplicates.check(*prints(found), names, ids)


def prints(found):
    return [np.array(c) for c in zip(*map(duplicates.fingerprint, found), strict=True)]


def test_a_picture_of_two_splits_is_found_to_the_pixel():
    found = pictures()
    assert compared(found).level == OK
    found[25] = found[4]
    told = compared(found)
    assert told.level == FAIL
    assert told.data["across_splits"] == [["train: im4", "test: im25"]]


def test_a_picture_twice_in_one_split_is_only_mentioned():
    found = pictures()
    found[5] = found[4]
    told = compared(found)
    assert told.level == WARN
    assert told.data["within_a_split"] == [["train: im4", "train: im5"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: np.clip(picture.astype(int) + 20, 0, 255).astype(np.uint8),
        lambda picture: picture[::2, ::2],
        lambda picture: (picture * 0.8).astype(np.uint8),
    ],
)
def test_a_brightened_or_shrunk_copy_is_nearly_the_same(change):
    found = list(pictures())
    found[25] = change(found[4])
    told = compared(found)
    assert told.level == WARN
    assert told.data["near_across_splits"] == [["test: im25", "train: im4"]]


def test_a_background_that_all_share_makes_no_pictures_alike():
    rng = np.random.default_rng(1)
    found = np.repeat(pictures(1), 30, axis=0).astype(float)
    for i, picture in enumerate(found):
        y, x = 12 * (i // 6), 20 * (i % 6)
        picture[y : y + 6, x : x + 6] = 0
    found = (found + rng.normal(0, 2, found.shape)).clip(0, 255).astype(np.uint8)
    assert not compared(found).data["near_across_splits"]


# --- places ---


def test_leaving_one_out_in_closed_form_is_leaving_it_out():
    """Against plain regressions on n - 1 examples, with the intercept as a column of its own."""
    rng = np.random.default_rng(0)
    inputs, outputs = rng.normal(size=(25, 4)), rng.normal(size=(25, 2))
    apart = ((inputs[:, None] - inputs[None]) ** 2).sum(-1)
    kernel = np.exp(-apart / np.median(apart))
    centre = np.eye(25) - 1 / 25
    mean = np.linalg.eigvalsh(centre @ kernel @ centre).mean()
    candidates = []
    for ridge in places._RIDGES * mean:
        errors = []
        for i in range(25):
            rest = np.arange(25) != i
            # Kernel ridge with an unpenalised intercept b: [K + r, 1; 1, 0] [α; b] = [y; 0].
            system = np.zeros((25, 25))
            system[:24, :24] = kernel[np.ix_(rest, rest)] + ridge * np.eye(24)
            system[24, :24] = system[:24, 24] = 1
            solved = np.linalg.solve(system, np.vstack([outputs[rest], np.zeros((1, 2))]))
            errors.append(outputs[i] - kernel[i, rest] @ solved[:24] - solved[24])
        candidates.append(np.array(errors))
    best = min(candidates, key=lambda e: np.median(np.linalg.norm(e, axis=1)))
    np.testing.assert_allclose(places.leave_one_out(inputs, outputs), best, rtol=1e-6)


def test_labels_of_another_picture_are_noticed():
    records = figures(200)
    cells = prints(records.pixels)[1]
    assert places.check(records, np.arange(200), cells).level == OK
    middle = records.keypoints.mean(axis=1)
    a, b = int(middle.sum(1).argmin()), int(middle.sum(1).argmax())
    records.keypoints[[a, b]] = records.keypoints[[b, a]]
    found = places.check(records, np.arange(200), cells)
    assert found.level == WARN
    assert set(found.data["unexpected"]) == {f"im{a}", f"im{b}"}


def test_pictures_that_do_not_tell_where_their_labels_lie_are_not_judged():
    records = herd()
    cells = np.random.default_rng(0).uniform(0, 255, (80, 16, 16)).astype(np.float32)
    found = places.check(records, np.arange(80), cells)
    assert found.level == OK
    assert "not looked for" in found.message


# --- the codec ---


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("decoder", ["dark", "argmax", "local_soft_argmax"])
def test_every_decoder_does_as_well_as_it_says(loss, decoder):
    changes = {"loss.name": loss, "decoder.name": decoder, "decoder.radius": 6}
    found = codec.check(make_config(**SMALL, **changes), figures(40))
    assert found.level == (WARN if decoder == "argmax" else OK)
    straight = found.data["decoders"][decoder]["evaluated"]
    if decoder == "argmax":  # a uniform error on a square of 4 original pixels
        assert straight["rmse_px"] == pytest.approx(4 * np.sqrt(1 / 6), rel=0.03)
    assert np.abs(straight["bias_px"]).max() < 0.02


@pytest.mark.parametrize("half", [(0.5, 0), (0, -0.5)])
@pytest.mark.parametrize("name", ["dark", "argmax"])
def test_half_a_pixel_in_a_decoder_is_noticed(name, half):
    honest = decoding.DECODERS[name]

    def shifted(maps, kind, config):
        return honest.locate(maps, kind, config) + np.array(half, np.float32)

    broken = {**decoding.DECODERS, name: dataclasses.replace(honest, locate=shifted)}
    with mock.patch.object(decoding, "DECODERS", broken):
        found = codec.check(make_config(**SMALL, **{"decoder.name": name}), figures(40))
    assert found.level == FAIL
    bias = found.data["decoders"][name]["evaluated"]["bias_px"]
    np.testing.assert_allclose(bias, 4 * np.array(half), atol=0.02)  # 128 px read from maps of 32


def test_half_a_pixel_of_the_input_is_noticed_too():
    """Such as a resize without its half pixels: (x + 0.5)·s − 0.5 taken for x·s."""

    def naive(points, from_size, to_size, xp=np):
        return points * xp.asarray([to_size[1] / from_size[1], to_size[0] / from_size[0]])

    config = make_config(**SMALL)
    records = figures(40)
    trip = trips.evaluated(config, records)
    with (
        mock.patch.object(decoding.geometry, "rescale", naive),
        mock.patch.object(trips, "evaluated", return_value=trip),
        mock.patch.object(trips, "augmented", return_value=trip),
    ):
        found = codec.check(config, records)
    assert found.level == FAIL
    bias = found.data["decoders"]["dark"]["evaluated"]["bias_px"]
    np.testing.assert_allclose(bias, [-1, -1], atol=0.01)  # half an input pixel, of two originals


def test_a_mirror_that_forgets_to_rename_is_noticed():
    flipping = {"augment.horizontal_flip": 0.5, "augment.rotation": 30.0}
    config = make_config(**SMALL, **flipping)
    assert codec.check(config, figures(40)).level == OK
    with mock.patch.object(augment, "mirrored", lambda affines: np.zeros(len(affines), bool)):
        assert codec.check(config, figures(40)).level == FAIL


def test_plain_soft_argmax_on_squared_error_is_measured_even_if_forced():
    forced = {"decoder.name": "soft_argmax", "decoder.force": True}
    found = codec.check(make_config(**SMALL, **forced), figures(40))
    assert found.level == FAIL


def test_maps_too_narrow_for_their_decoder_fail():
    found = codec.check(make_config(**{**SMALL, "targets.sigma": 0.2}), figures(40))
    assert found.level == FAIL
    assert "raise targets.sigma from 0.2" in found.message


def test_a_window_that_is_too_small_comes_with_the_right_one():
    small = {"decoder.name": "local_soft_argmax", "decoder.radius": 3}
    found = codec.check(make_config(**{**SMALL, "targets.sigma": 3.0}, **small), figures(40))
    assert found.level == WARN
    assert "decoder.radius to 9" in found.message


def test_coordinates_go_round_without_maps():
    regression = {"model.name": "regression", "loss.name": "coordinate_mse"}
    found = codec.check(make_config(**SMALL, **regression), figures(40))
    assert found.level == OK
    assert list(found.data["decoders"]) == ["coordinates"]


def test_the_border_is_measured_where_labels_lie():
    records = figures(40)
    records.keypoints[:, 0] = (1.0, 64.0)
    soft = {"loss.name": "cross_entropy", "decoder.name": "soft_argmax"}
    found = codec.check(make_config(**SMALL, **soft), records)
    assert found.level == WARN
    assert "border" in found.message


def test_centimetres_follow_the_scale_of_the_pictures():
    records = dataclasses.replace(figures(40), px_per_cm=np.full(40, 20.0))
    found = codec.check(make_config(**SMALL, **{"decoder.name": "argmax"}), records)
    straight = found.data["decoders"]["argmax"]["evaluated"]
    assert straight["rmse_cm"] == pytest.approx(straight["rmse_px"] / 20)
    assert any("cm" in row for row in found.rows)


def test_a_sweep_has_every_sub_pixel_offset_and_keeps_from_the_border():
    config = make_config(**SMALL)
    points = geometry.rescale(trips.sweep(config, (64, 64)), (64, 64), (32, 32))
    assert points.min() >= 31 / 4
    assert points.max() <= 31 * 3 / 4
    offsets = (points % 1).reshape(-1, 2)
    counts, *_ = np.histogram2d(*offsets.T, bins=8, range=[[0, 1], [0, 1]])
    assert counts.min() > 0.6 * counts.mean()


# --- what a trained run says ---


def test_labels_that_a_trained_run_contradicts(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (50, 2, 2))
    predicted = truth + rng.normal(0, 1, truth.shape)
    predicted[8, 1] += 300
    points = KeypointSet(("a", "b"))
    path = tmp_path / "predictions" / "test.parquet"
    prediction_table.save(path, build(predicted, truth), points.names, csv=False)
    found = trained.check(tmp_path, points)
    assert found.level == WARN
    assert [(one["record"], one["point"]) for one in found.data["contradicted"]] == [
        ("image8", "b")
    ]
    with pytest.raises(UserError, match="no predictions"):
        trained.check(tmp_path / "elsewhere", points)


# --- cost ---


@pytest.mark.parametrize(
    "settings",
    [
        {"train.epochs": 3},
        {"train.epochs": 5, "train.eval_every_epochs": 2},
        {"train.steps": 50, "train.eval_every_steps": 20},
    ],
)
def test_evaluations_are_counted_as_training_does_them(settings):
    config = make_config(**{"train.batch_size": 8, **settings})
    steps = batching.steps_per_run(config, 20)
    epochs = [step * 8 // 20 for step in range(steps + 1)]
    if config.train.eval_every_steps:
        due = {20, 40, 50}
    else:
        every = config.train.eval_every_epochs
        due = {s for s in range(1, steps + 1) if epochs[s] // every > epochs[s - 1] // every}
    assert cost.evaluations(config, 20, steps) == len(due | {steps})


@pytest.mark.slow
def test_the_whole_run_is_estimated_from_a_few_steps():
    regression = {"model.name": "regression", "loss.name": "coordinate_mse", "train.epochs": 4}
    config = make_config(**SMALL, **regression)
    splits = {"train": figures(40), "val": figures(10)}
    found = cost.check(config, splits, patience=0.2)
    assert found.level == OK
    numbers = found.data
    assert (numbers["steps"], numbers["evaluations"]) == (10, 4)
    each = 10 * numbers["step"] + numbers["compiling"] + 5 * numbers["evaluation"]
    assert 3600 * numbers["hours"] == pytest.approx(each)
    parameters = 4 * 3 * 1_000_000  # weights and Adam's two moments of a network of millions
    assert numbers["device_bytes"] > parameters
    assert numbers["host_bytes"] > 1e8


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"data.cache": "device", "augment.where": "device", "model.name": "regression"},
        {"model.name": "vit", "model.backbone": "tiny16", "model.keep_features": True},
    ],
)
def test_steps_are_taken_however_the_pictures_travel(settings):
    loss = "coordinate_mse" if settings["model.name"] == "regression" else "mse"
    random = {"model.backbone_init": "random", "data.channels": 3, "loss.name": loss}
    config = make_config(**SMALL, **random, **settings)
    splits = {"train": figures(20), "val": figures(4)}
    found = cost.check(config, splits, patience=0.1)
    assert found.level == OK
    assert (found.data["features"] > 0) == config.model.keep_features


COST = cost.Cost(
    compiling=10.0,
    step=0.5,
    waiting=0.1,
    evaluation=4.0,
    features=0.0,
    device_bytes=3_000_000_000,
    host_bytes=90_000_000,
)


@pytest.mark.parametrize(
    ("waiting", "max_hours", "level", "words"),
    [
        # 100 steps, 2 evaluations and the final one of 8 pictures, half as many again
        (0.1, 0.0, OK, "about 74 s, to compile 10 s; 3.00 GB of memory a device"),
        (0.1, 37 / 3600, WARN, "train.max_hours=0.0102778 ends the run near step 50"),
        (0.6, 0.0, WARN, "data.cache"),
    ],
)
def test_what_a_run_costs_is_said_in_a_sentence(waiting, max_hours, level, words):
    config = make_config(**{"train.steps": 100, "train.eval_every_steps": 50, **SMALL})
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, max_hours=max_hours)
    )
    splits = {"train": figures(40), "val": figures(8), "test": figures(4)}
    found = cost.describe(config, splits, dataclasses.replace(COST, waiting=waiting))
    assert found.level == level
    assert words in found.message


def test_a_run_that_cannot_be_built_fails_with_its_sentence(tmp_path):
    vit = {"model.name": "vit", "data.channels": 3, "model.backbone": "tiny16"}
    config = make_config(**{**SMALL, **vit, "model.backbone_weights": str(tmp_path)})
    splits = {"train": figures(40), "val": figures(10)}
    found = cost.check(config, splits)
    assert found.level == FAIL
    assert str(tmp_path) in found.message


# --- no false alarms ---


@pytest.mark.parametrize("arms", ["own_side", "free"])
def test_stick_figures_raise_no_alarm(arms):
    records = figures(120, arms)
    names = np.array(["train"] * 100 + ["test"] * 20)
    found = [
        frames.labels(records, names, 0.0),
        frames.inside(records, batching.eval_affines(records, make_config()), (128, 128)),
        frames.scale(records),
        check_sides(records),
        outliers.check(records),
        duplicates.check(*prints(records.pixels), names, records.ids),
        places.check(records, np.arange(120), prints(records.pixels)[1]),
    ]
    assert [f.level for f in found] == [OK] * len(found), found


@pytest.mark.parametrize("seed", range(5))
def test_a_herd_raises_no_alarm(seed):
    records = herd(seed=seed)
    for check in (frames.scale, check_sides, outliers.check):
        assert check(records).level == OK


def test_exchanged_feet_of_stick_figures_are_found():
    found = check_sides(exchanged(figures(120), [5, 60, 61], [(3, 4)]))
    assert found.level == FAIL
    assert found.data["left_foot/right_foot"]["swapped"] == ["im5", "im60", "im61"]

"""What to label next, and which labels to doubt: choices by hand, and the command on a tiny run."""

import csv
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import input_pipeline
from benchmarks import rank as benchmark
from heatmap import decoding, rank
from heatmap import run as run_lib
from heatmap.errors import UserError
from heatmap.inference import candidates, doubts, predictor, ranking
from heatmap.inference import judged as judged_lib
from heatmap.inference.predictor import Predictor
from heatmap.keypoints import KeypointSet
from heatmap.models import MODELS
from heatmap.train import train
from input_pipeline import sources
from launch.jobs import ROOT
from tests.helpers import MODEL_SETTINGS, TINY, make_config, properties
from tests.test_predict import spots, write_boxes, write_film
from tests.test_predictor import build, output_of, pictures
from tests.test_uncertainty import instances

POINTS = KeypointSet(("nose", "left_hand", "right_hand", "tail"), flip_pairs=((1, 2),))
SEEDS = st.integers(0, 2**32 - 1)


# --- how uncertain a picture is ---


def one_point(score=1.0, sd=2.0, unit=1.0, place=(5.0, 5.0)):
    covariance = np.broadcast_to(sd**2 * np.eye(2), (1, 1, 2, 2))
    return instances([[place]], covariance, [[score]], unit)


def test_a_wide_or_low_peak_is_uncertain_and_none_could_be_anywhere():
    config = make_config(**{"data.image_size": (60, 80)})  # a diagonal of 100

    def of(**settings):
        return float(ranking.uncertainties(one_point(**settings), config)[0])

    assert of() == pytest.approx(0.02, rel=0.01)
    assert of(sd=4.0) == of(score=0.5) == pytest.approx(0.04, rel=0.01)
    anywhere = np.random.default_rng(0).uniform((0, 0), (80, 60), (2, 200_000, 2))
    lost = np.sqrt(np.mean(np.sum((anywhere[0] - anywhere[1]) ** 2, axis=1))) / 100
    assert of(score=0.0) == pytest.approx(lost, rel=0.01)
    low = [of(score=score) for score in (0.1, 0.05, 0.01, 1e-9)]
    assert low == sorted(low)
    assert low[-1] == pytest.approx(of(score=0.0))
    assert of(place=(np.nan, 5.0)) == of(score=0.0)
    # As much in a picture of twice the pixels, whose peaks are twice as wide in them.
    assert of(sd=4.0, unit=2.0) == pytest.approx(of())


def peak_at(x, kind, height=1.0):
    """A map [1, 16, 24, 4] with the same Gaussian of σ = 2 for each point."""
    rows, columns = np.mgrid[:16, :24]
    squares = (columns - x) ** 2 + (rows - 8) ** 2
    one = height * np.exp(-squares / 8) if kind == "peak" else -squares / 8
    return np.repeat(one[None, :, :, None], 4, axis=-1).astype(np.float32)


def errors_of(maps, run):
    decoded = decoding.decode(run.config, jnp.asarray(maps))
    points, covariance, unit = predictor.in_original_pixels(decoded, np.eye(3)[None])
    found = instances(points, covariance, np.asarray(decoded.score), unit)
    return ranking.expected_errors(found, run.config)[0]


LOST = np.hypot(32, 48) / np.sqrt(6)


def width(error):
    """Undoes the limit."""
    return 1 / np.sqrt(error**-2.0 - LOST**-2.0)


def test_an_empty_map_is_more_uncertain_than_any_peak():
    run = build("peak", points=POINTS)
    sharp, half, empty = (errors_of(peak_at(10, "peak", h), run)[0] for h in (1.0, 0.5, 0.0))
    assert width(half) == pytest.approx(2 * width(sharp), rel=1e-3)
    assert empty == pytest.approx(LOST)
    assert empty > 1.5 * half
    flat = errors_of(np.zeros((1, 16, 24, 4), np.float32), build("logits", points=POINTS))
    assert flat == pytest.approx(empty, rel=0.05)


@pytest.mark.parametrize("kind", ["peak", "logits"])
def test_models_that_differ_are_unsure(kind):
    run = build(kind, points=POINTS)
    voted = Predictor([run, run])._combined

    def together(*places):
        return errors_of(voted([jnp.asarray(peak_at(x, kind)) for x in places]), run)

    agreed, near, far = together(5, 5), together(5, 7), together(5, 19)
    assert (near > 1.1 * agreed).all()
    np.testing.assert_allclose(
        width(far), 2 * width(agreed), rtol=0.05
    )  # the border cuts a little off


@pytest.mark.slow
def test_coordinates_have_the_spread_of_the_single_answers():
    runs = [build("coordinates", seed) for seed in (0, 1, 2)]
    decoded = Predictor(runs).examine(pictures()).decoded
    single = np.stack([(output_of(run)) * [48, 32] - 0.5 for run in runs])
    for point in range(single.shape[2]):
        for row in range(single.shape[1]):
            expected = np.cov(single[:, row, point].T, ddof=0)
            np.testing.assert_allclose(decoded.covariance[row, point], expected, atol=1e-3)
    alone = Predictor(runs[:1]).examine(pictures()).decoded
    assert np.isnan(alone.covariance).all()


# --- features ---


@pytest.mark.parametrize("name", MODELS)
def test_every_model_describes_pictures(name):
    """A copy lies where its picture does; another picture elsewhere; a batch changes nothing."""
    settings = {"data.image_size": (32, 32), "targets.heatmap_size": (16, 16)}
    config = make_config(**settings, **MODEL_SETTINGS[name], **{"model.name": name})
    model = Predictor([run_lib.build(config, POINTS)])
    shape = (3, 32, 32, config.data.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    features = np.asarray(model.examine(images[[0, 1, 0, 2]]).features)
    assert features.shape[0] == 4
    assert features.shape[1] <= 64
    np.testing.assert_allclose(features[0], features[2], rtol=1e-5)
    scale = np.abs(features).max()
    assert np.linalg.norm(features[0] - features[1]) > 1e-3 * scale
    other = np.asarray(model.examine(images[[2, 2, 2, 1]]).features)
    np.testing.assert_allclose(other[0], features[3], atol=1e-4 * scale)


def test_features_keep_their_distances():
    features = np.random.default_rng(0).normal(size=(40, 768)).astype(np.float32)
    kept = np.asarray(predictor._projected(features))
    assert kept.shape == (40, 64)
    rows, columns = np.triu_indices(40, 1)
    ratio = np.linalg.norm(kept[rows] - kept[columns], axis=1)
    ratio /= np.linalg.norm(features[rows] - features[columns], axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.05)
    assert ratio.std() < 0.15


@pytest.mark.slow
def test_the_network_is_not_run_twice_for_its_features():
    model = Predictor([build("peak")])
    arguments = model._weights, pictures()

    def work(function):
        with jax.set_mesh(model.mesh):
            return function.lower(*arguments).compile().cost_analysis()["flops"]

    assert work(model._examine) < 1.05 * work(model._step)


# --- which pictures to label ---


def brute_force(features, uncertainty, count):
    """The documented rule, one candidate at a time."""
    rows = [max(range(len(features)), key=lambda i: (uncertainty[i], -i))]
    while len(rows) < min(count, len(features)):
        value = {
            i: uncertainty[i] * min(np.linalg.norm(features[i] - features[j]) for j in rows)
            for i in range(len(features))
            if i not in rows
        }
        rows.append(max(value, key=lambda i: value[i]))
    return rows


@given(SEEDS, st.integers(1, 12), st.integers(1, 15))
@properties
def test_choices_are_by_the_rule_and_whatever_the_order(seed, n, count):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 3)).astype(np.float32)
    uncertainty = rng.uniform(0.01, 0.4, n)
    chosen = ranking.choose(features, uncertainty, count).rows
    assert chosen.tolist() == brute_force(features.astype(float), uncertainty, count)
    order = rng.permutation(n)
    again = ranking.choose(features[order], uncertainty[order], count).rows
    assert order[again].tolist() == chosen.tolist()


def clustered(sizes, seed=0, noise=1e-3):
    """Tight groups far apart; returns features and the group of each."""
    rng = np.random.default_rng(seed)
    centres = 10 * np.eye(len(sizes))
    group = np.repeat(np.arange(len(sizes)), sizes)
    return centres[group] + noise * rng.normal(size=(len(group), len(sizes))), group


def test_the_most_uncertain_of_each_group_comes_before_any_second():
    features, group = clustered([300, 40, 5, 1, 20])
    uncertainty = np.random.default_rng(1).uniform(0.05, 0.1, len(group))
    best = [np.flatnonzero(group == g)[uncertainty[group == g].argmax()] for g in range(5)]
    uncertainty[best] = [0.2, 0.3, 0.4, 0.5, 0.6]
    chosen = ranking.choose(features, uncertainty, 25)
    assert chosen.rows[:5].tolist() == best[::-1]
    clusters = chosen.clusters
    assert clusters[:5].tolist() == [1, 2, 3, 4, 5]
    assert (clusters == clusters[:5][::-1][group[chosen.rows]]).all()


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_frames_that_are_nearly_the_same_do_not_fill_the_list(noise):
    """500 frames of a scene in which the model is lost, and 30 pictures of which it is sure."""
    rng = np.random.default_rng(0)
    film = rng.normal(size=8) + noise * rng.normal(size=(500, 8))
    others = rng.normal(size=(30, 8))
    features = np.concatenate([film, others])
    uncertainty = np.concatenate([np.full(500, 0.4), np.full(30, 0.02)])
    uncertainty[17] = 0.41
    chosen = ranking.choose(features, uncertainty, 40).rows
    assert chosen[0] == 17
    assert sorted(chosen[1:31]) == list(range(500, 530))
    assert (chosen[31:] < 500).all()


def test_copies_come_last_the_most_uncertain_first():
    features = np.array([[0.0, 2.0]] * 3 + [[1.0, 2.0]] * 2)
    chosen = ranking.choose(features, np.array([0.1, 0.3, 0.2, 0.25, 0.05]), 5)
    assert chosen.rows.tolist() == [1, 3, 2, 0, 4]
    assert chosen.clusters.tolist()[:2] == [1, 1]  # five pictures are one cluster
    assert ranking.choose(features[:3], np.ones(3), 3).rows.tolist() == [0, 1, 2]


def test_what_has_labels_counts_as_picked():
    """Against picking the labelled ones first, by hand."""
    rng = np.random.default_rng(0)
    features, uncertainty = rng.normal(size=(30, 3)).astype(np.float32), rng.uniform(0.1, 0.2, 30)
    centres = features[[3, 9]] + 1e-3
    chosen = ranking.choose(features, uncertainty, 30, centres).rows.tolist()
    picked = list(centres)
    for row in chosen[:6]:
        apart = np.min(np.linalg.norm(features[:, None] - np.array(picked)[None], axis=2), axis=1)
        value = np.where(
            np.isin(np.arange(30), chosen[: chosen.index(row)]), -1, apart * uncertainty
        )
        assert row == value.argmax()
        picked.append(features[row])
    assert set(chosen[-2:]) == {3, 9}
    assert sorted(chosen) == list(range(30))
    nothing = ranking.choose(features, uncertainty, 30, np.empty((0, 3))).rows.tolist()
    assert nothing == ranking.choose(features, uncertainty, 30).rows.tolist()
    alike = ranking.choose(np.ones((4, 3)), np.array([0.1, 0.3, 0.2, 0.25]), 4, np.ones((1, 3)))
    assert alike.rows.tolist() == [1, 3, 2, 0]


# --- which labels to doubt ---


def labelled(seed=0, n=60, error=1.5):
    """Points 20 px apart or more, predictions near them, and what the model expects."""
    rng = np.random.default_rng(seed)
    shape = np.array([[0, 0], [-30, 40], [30, 40], [0, 90]], float)
    truth = shape + rng.uniform(-20, 20, (n, 1, 2)) + rng.normal(size=(n, 4, 2))
    expected = rng.uniform(1, 3, (n, 4))
    predicted = truth + error / 2 * expected[..., None] * rng.normal(size=truth.shape)
    return predicted, truth, expected


def test_swapped_and_displaced_labels_are_found_at_the_top():
    predicted, truth, expected = labelled()
    truth[7, [1, 2]] = truth[7, [2, 1]]
    truth[23, 3] += (25, -10)
    truth[31, [0, 3]] = truth[31, [3, 0]]
    truth[40, 0] = np.nan
    found = doubts.rank(predicted, truth, expected, 10)
    assert {doubt.row for doubt in found[:3]} == {7, 23, 31}
    by_row = {doubt.row: doubt for doubt in found}
    assert by_row[7].swapped == ((1, 2),)
    assert by_row[31].swapped == ((0, 3),)
    assert (by_row[23].point, by_row[23].swapped) == (3, ())
    apart = np.hypot(*(predicted[23, 3] - truth[23, 3]))
    assert by_row[23].error == pytest.approx(apart)
    assert all(doubt.swapped == () for doubt in found[3:])
    assert len(found) == 10
    assert doubts.phrase(by_row[7], POINTS).endswith("; left_hand/right_hand look swapped")
    assert doubts.phrase(by_row[23], POINTS).startswith("tail is ")


@given(SEEDS)
@properties
def test_pairs_look_swapped_if_their_exchange_makes_them_usual(seed):
    """Against exchanging the labels of each pair and judging the instance again."""
    rng = np.random.default_rng(seed)
    predicted, truth, expected = labelled(seed)
    expected[0] *= rng.choice([0.5, 1, 8], 4)
    norm = doubts.usual(np.hypot(*np.moveaxis(predicted - truth, -1, 0)), expected)
    labels = truth[0][rng.choice(4, 4)]  # some in another's place, some twice
    labels += 4 * rng.normal(size=labels.shape)

    def judged(labels):
        errors = np.hypot(*(predicted[0] - labels).T)
        return norm.doubt(errors, expected[0], np.arange(4))

    gain = {}
    for a, b in itertools.combinations(range(4), 2):
        exchanged = labels.copy()
        exchanged[[a, b]] = labels[[b, a]]
        before, after = (max(judged(one)[[a, b]]) for one in (labels, exchanged))
        if after < doubts._USUAL and before - after > doubts._LESS:
            gain[a, b] = before - after
    found = doubts._swapped(norm, predicted[0], labels, expected[0])
    assert set(found) <= set(gain)
    assert found[:1] == tuple(sorted(gain, key=lambda pair: -gain[pair])[:1])
    assert len({k for pair in found for k in pair}) == 2 * len(found)


def test_a_label_is_doubted_less_where_the_model_is_unsure():
    predicted, truth, expected = labelled()
    truth[5, 3] += (20, 0)
    truth[6, 3] += (20, 0)
    predicted[5:7] = np.where(np.arange(4)[:, None] == 3, predicted[5], truth[5:7])
    predicted[6, 3] = truth[6, 3] - (predicted[5, 3] - truth[5, 3])
    expected[5, 3], expected[6, 3] = 1.0, 10.0
    found = {doubt.row: doubt.doubt for doubt in doubts.rank(predicted, truth, expected, 60)}
    assert found[5] > found[6] + 1


def test_doubts_count_robust_standard_deviations():
    """By hand: the logarithm of the ratio, its median by point, the spread of all."""
    predicted, truth, expected = labelled(n=31)
    truth[3] += 200
    errors = np.hypot(*np.moveaxis(predicted - truth, -1, 0))
    logarithms = np.log(errors / expected)
    centred = logarithms - np.median(logarithms, axis=0)
    z = centred / (1.4826 * np.median(np.abs(centred)))
    found = doubts.rank(predicted, truth, expected, 31)
    assert [doubt.row for doubt in found] == np.argsort(-z.max(axis=1)).tolist()
    np.testing.assert_allclose([doubt.doubt for doubt in found], -np.sort(-z.max(axis=1)))
    assert [doubt.point for doubt in found] == z.argmax(axis=1)[[d.row for d in found]].tolist()


def test_lost_predictions_and_missing_labels_are_no_doubts():
    predicted, truth, expected = labelled(n=12)
    truth[2] = np.nan
    predicted[4, :, 0] = np.nan
    truth[:, 1] = np.nan  # a point that is never labelled
    predicted[5, 0] = np.inf
    found = doubts.rank(predicted, truth, expected, 99)
    assert {doubt.row for doubt in found} == set(range(12)) - {2, 4}
    assert all(np.isfinite(doubt.doubt) and doubt.point != 1 for doubt in found)
    assert doubts.rank(predicted[:3], np.full((3, 4, 2), np.nan), expected[:3], 5) == []
    perfect = doubts.rank(truth[:2], truth[:2], expected[:2], 5)
    assert all(np.isfinite(doubt.doubt) for doubt in perfect)


# --- the command ---


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unet"
    train(make_config(**TINY | {"data.root": str(tiny_root), "train.steps": 10}), folder)
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_are_ranked(run, other_root, tmp_path, capsys):
    given = shutil.copytree(other_root / "test", tmp_path / "given")
    for i in range(30):  # copies of one picture
        shutil.copyfile(given / "000.png", given / f"copy{i:02d}.png")
    (given / "cut.png").write_bytes((given / "000.png").read_bytes()[:200])
    out = tmp_path / "out"
    rank.main([f"--workdir={run}", str(given), f"--out={out}", "--count=8"])
    rows = table(out / "to_label.csv")
    assert list(rows[0]) == ["rank", "source", "frame", "uncertainty", "cluster"]
    assert [row["rank"] for row in rows] == [str(i) for i in range(1, 9)]
    names = [row["source"].split("/")[-1] for row in rows]
    same = [name.startswith("copy") or name == "000.png" for name in names]
    assert sum(same[:6]) == 1
    assert all(same[6:])
    assert {row["frame"] for row in rows} == {"-1"}
    assert all(0 < float(row["uncertainty"]) < 0.5 for row in rows)
    with Image.open(out / "to_label.png") as sheet:
        assert sheet.size[0] > 300
        assert np.asarray(sheet.convert("L")).std() > 10
    told = capsys.readouterr()
    assert "wrote 8 of 36 pictures" in told.out
    assert "cut.png cannot be read" in told.err
    assert [row["source"].split("/")[-1] for row in table(out / "problems.csv")] == ["cut.png"]
    # Given again without it, the list of problems goes.
    (given / "cut.png").unlink()
    rank.main([f"--workdir={run}", str(given), f"--out={out}", "--count=8"])
    assert table(out / "to_label.csv") == rows
    assert not (out / "problems.csv").exists()


def test_what_has_labels_is_not_proposed(run, tiny_root, other_root, tmp_path, capsys):
    """Neither where it lies nor as a copy; and what looks like it comes last."""
    given = shutil.copytree(other_root / "test", tmp_path / "given")
    shutil.copyfile(tiny_root / "train" / "003.png", given / "copy.png")
    pixels = np.asarray(Image.open(tiny_root / "train" / "005.png"))
    Image.fromarray(pixels ^ 1).save(given / "twin.png")
    out = tmp_path / "out"
    command = [f"--workdir={run}", str(given), str(tiny_root / "val"), f"--out={out}"]
    rank.main(command)
    names = [row["source"].split("/")[-1] for row in table(out / "to_label.csv")]
    assert sorted(names) == sorted([*(f"{i:03d}.png" for i in range(6)), "twin.png"])
    assert names[-1] == "twin.png"
    assert "7 have labels already" in capsys.readouterr().out
    with pytest.raises(UserError, match="All 6 pictures have labels already"):
        rank.main([f"--workdir={run}", str(tiny_root / "val"), f"--out={out}"])


def test_a_run_whose_data_are_gone_ranks_all_the_same(run, tiny_root, tmp_path, capsys):
    out = tmp_path / "out"
    command = [f"--workdir={run}", str(tiny_root / "val"), f"--out={out}"]
    rank.main([*command, f"--root={tmp_path / 'gone'}"])
    assert len(table(out / "to_label.csv")) == 6
    assert "Without the run's own data (--root)" in capsys.readouterr().err


def test_its_own_pictures_are_no_candidates(run, other_root, tmp_path):
    given = shutil.copytree(other_root / "test", tmp_path / "given")
    command = [f"--workdir={run}", str(given), f"--out={given / 'next'}"]
    rank.main(command)
    rank.main(command)
    assert len(table(given / "next" / "to_label.csv")) == 6


def test_frames_of_a_video_are_ranked(run, tmp_path):
    film, out = tmp_path / "film.mp4", tmp_path / "out"
    frames = [spots(0)] * 12 + [spots(i) for i in range(12)]
    write_film(film, frames)
    rank.main([f"--workdir={run}", str(film), f"--out={out}", "--every=3", "--count=6"])
    rows = table(out / "to_label.csv")
    found = [int(row["frame"]) for row in rows]
    assert all(frame % 3 == 0 for frame in found)
    assert len(set(found)) == 6
    assert sum(frame <= 12 for frame in found[:4]) <= 1  # these five look the same
    assert (out / "to_label.png").is_file()


def test_a_picture_has_the_uncertainty_of_its_worst_instance(run, tmp_path):
    pixels = np.concatenate([spots(3), np.full((48, 64, 3), 90, np.uint8)], axis=1)
    given = tmp_path / "given"
    given.mkdir()
    for name in ("a", "b"):
        Image.fromarray(pixels).save(given / f"{name}.png")
    boxes = [[0, 0, 64, 48], [64, 0, 64, 48]]
    files = ["a.png", "b.png"]

    def uncertainty(*chosen):
        placed = [(i, box) for i in range(len(files)) for box in chosen]
        write_boxes(tmp_path / "boxes.json", files, placed)
        named, _ = sources.find([str(given)])
        listed = input_pipeline.coco.read_boxes(tmp_path / "boxes.json")
        found, problems = candidates.look(predictor.open_all([run]), named, listed, 1)
        assert problems == []
        return found

    # Twice the same: a picture with one box is taken whole.
    left, right = (float(uncertainty(box, box).uncertainty[0]) for box in boxes)
    assert left != pytest.approx(right, rel=1e-3)
    both = uncertainty(*boxes)
    assert len(both) == 2
    np.testing.assert_allclose(both.uncertainty, max(left, right), rtol=1e-5)
    assert both.instance.tolist() == [int(right > left)] * 2


def test_labels_are_ranked(run, tiny_root, tmp_path, capsys):
    rank.main([f"--workdir={run}", "--labelled", "--count=9"])
    rows = table(run / "rank" / "doubted_labels.csv")
    told = capsys.readouterr().out
    assert len(rows) == 9
    assert {row["split"] for row in rows} <= {"train", "val", "test"}
    assert "wrote 9 of 32 instances" in told
    assert "data.split.folds" in told
    assert [float(r["doubt"]) for r in rows] == sorted(float(r["doubt"]) for r in rows)[::-1]
    rank.main([f"--workdir={run}", "--labelled", "--split=val", f"--out={tmp_path / 'out'}"])
    rows = table(tmp_path / "out" / "doubted_labels.csv")
    assert {row["split"] for row in rows} == {"val"}
    assert len({row["id"] for row in rows}) == len(rows) == 6
    assert "data.split.folds" not in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "doubted_labels.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10


def test_wrong_labels_of_a_split_are_found(run, monkeypatch):
    """The network is made to see the true points; some labels are changed."""
    model = predictor.open_all([run])
    records, split = input_pipeline.load(model.config.data)
    records = records.take(split.rows["train"])
    truth = records.keypoints.copy()
    found = judged_lib.predict(model, records)
    rng = np.random.default_rng(0)
    sharp = np.broadcast_to(np.eye(2), found.covariance.shape)
    found = dataclasses.replace(
        found,
        points=truth + 0.3 * rng.normal(size=truth.shape),
        covariance=sharp,
        score=np.ones_like(found.score),
    )
    labels = truth.copy()
    far = int(np.argsort(-np.hypot(*(truth[:, 0] - truth[:, 1]).T))[0])
    labels[far] = labels[far, ::-1]
    moved = (far + 3) % len(labels)
    labels[moved, 1] += (6, -5)
    wrong = dataclasses.replace(records, keypoints=labels)
    judged = judged_lib.judge(model, "train", wrong, found, 5)
    assert {doubt.row for doubt in judged.doubts[:2]} == {far, moved}
    by_row = {doubt.row: doubt for doubt in judged.doubts}
    assert by_row[far].swapped == ((0, 1),)
    assert (by_row[moved].point, by_row[moved].swapped) == (1, ())
    # If the order of the two means nothing, the exchanged ones are no mistake.
    points = dataclasses.replace(model.points, interchangeable_pairs=((0, 1),))
    loss = dataclasses.replace(model.config.loss, interchangeable=True)
    monkeypatch.setattr(model, "points", points)
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, loss=loss))
    first, *others = judged_lib.judge(model, "train", wrong, found, 20).doubts
    assert first.row == moved
    assert all(doubt.doubt < 3 for doubt in others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"Name pictures to choose from and --out=DIR"),
        (["PICTURES"], r"--out=DIR"),
        (["--labelled", "PICTURES"], "not PICTURES; leave one out"),
        (["PICTURES", "--out=OUT", "--count=0"], "whole numbers from 1"),
        (["PICTURES", "--out=OUT", "--every=0"], "whole numbers from 1"),
        (["nowhere*.png", "--out=OUT"], "no file whose name fits"),
        (["--labelled", "--split=vol"], "'val'"),
    ],
)
def test_slips_are_sentences(run, arguments, message):
    with pytest.raises(UserError, match=message):
        rank.main([f"--workdir={run}", *arguments])


def test_nothing_readable_is_a_sentence(run, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(UserError, match="Nothing was ranked"):
        rank.main([f"--workdir={run}", str(tmp_path / "bad.png"), f"--out={tmp_path / 'out'}"])


def test_coordinates_alone_tell_no_uncertainty(tiny_root, other_root, tmp_path):
    settings = {"model.name": "regression", "loss.name": "coordinate_mse", "train.steps": 1}
    config = make_config(**TINY | {"data.root": str(tiny_root)} | settings)
    train(config, tmp_path / "run")
    command = [
        f"--workdir={tmp_path / 'run'}",
        str(other_root / "val"),
        f"--out={tmp_path / 'out'}",
    ]
    with pytest.raises(UserError, match=r"add --flip, or a second --workdir"):
        rank.main(command)
    rank.main([*command, "--flip"])
    uncertain = [float(row["uncertainty"]) for row in table(tmp_path / "out" / "to_label.csv")]
    assert len(set(uncertain)) == len(uncertain) == 6


def test_changed_data_are_refused(run, tiny_root, tmp_path):
    other = shutil.copytree(tiny_root, tmp_path / "other")
    text = (other / "val_annotations.json").read_text().replace("005.png", "004.png", 1)
    (other / "val_annotations.json").write_text(text)
    with pytest.raises(UserError):
        rank.main([f"--workdir={run}", "--labelled", f"--root={other}"])


@pytest.mark.slow
def test_the_process_says_how_it_ended(run, other_root, tmp_path):
    def command(*arguments):
        whole = [sys.executable, "-m", "heatmap.rank", *arguments]
        return subprocess.run(whole, cwd=ROOT, capture_output=True, text=True)

    good = command(f"--workdir={run}", str(other_root / "val"), f"--out={tmp_path / 'out'}")
    assert good.returncode == 0, good.stderr
    assert len(table(tmp_path / "out" / "to_label.csv")) == 6
    bad = command(f"--workdir={tmp_path}", str(other_root / "val"), f"--out={tmp_path / 'out'}")
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1
    assert "holds no" in bad.stderr


@pytest.mark.slow
def test_memory_does_not_grow_with_a_video(run, tmp_path):
    """The peak of a process after 1,000 frames, and after 10,000."""
    peaks = []
    for frames in (1_000, 10_000):
        film = tmp_path / f"{frames}.mp4"
        write_film(film, [spots(i % 20) for i in range(200)] * (frames // 200))
        command = [sys.executable, "-m", "heatmap.rank", f"--workdir={run}", str(film)]
        child = subprocess.Popen([*command, f"--out={tmp_path / str(frames)}"], cwd=ROOT)
        _, status, used = os.wait4(child.pid, 0)
        assert status == 0
        peaks.append(used.ru_maxrss / 1024)
        assert len(table(tmp_path / str(frames) / "to_label.csv")) == 50
    assert peaks[1] < peaks[0] + 60, peaks  # MB; a frame is a third of a kilobyte


def test_the_benchmark_measures_both(run, tmp_path, capsys):
    benchmark.main([f"--workdir={run}", "--split=train", f"--out={tmp_path}"])
    told = capsys.readouterr().out
    assert "| 20 | " in told
    (shares,) = [line.split("|")[2:4] for line in told.splitlines() if line.startswith("| doubt")]
    assert int(shares[0]) == 2
    assert 0 <= float(shares[1]) <= 1
    assert (tmp_path / "rank.png").stat().st_size > 10_000


@dataclasses.dataclass(frozen=True)
class Labels:
    keypoints: np.ndarray

    def __len__(self):
        return len(self.keypoints)


def test_spoiled_labels_are_the_ones_named():
    points = KeypointSet(("a", "b", "c"), flip_pairs=((0, 2),))
    keypoints = np.random.default_rng(0).uniform(0, 100, (40, 3, 2))
    spoiled, wrong = benchmark.spoil(Labels(keypoints), points, np.random.default_rng(1))
    changed = (spoiled.keypoints != keypoints).any(axis=2)
    assert changed.any(axis=1).tolist() == wrong.tolist()
    assert wrong.sum() == 4
    swapped = [row for row in np.flatnonzero(wrong) if changed[row].sum() == 2]
    assert len(swapped) == 2
    for row in swapped:
        assert (spoiled.keypoints[row] == keypoints[row][[2, 1, 0]]).all()
    for row in set(np.flatnonzero(wrong)) - set(swapped):
        assert changed[row].sum() == 1
        far = np.linalg.norm(spoiled.keypoints[row] - keypoints[row])
        assert 0.1 <= far / np.linalg.norm(np.ptp(keypoints[row], axis=0)) <= 0.3

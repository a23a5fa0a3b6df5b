"""From maps to intervals: yardsticks, factors, probabilities, scales."""

import dataclasses
import json
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from heatmap import calibration as calibration_lib
from heatmap.errors import UserError
from heatmap.inference import (
    fitting,
    labelled,
    lengths,
    overlay,
    place,
    scales,
    tables,
    uncertainty,
)
from heatmap.inference.instances import Instances, joined, load, pictures_in, save
from heatmap.inference.scales import Bar, Scale, Scales
from heatmap.inference.tables import Meaning
from heatmap.inference.uncertainty import Calibration, Line, Steps
from heatmap.keypoints import KeypointSet
from heatmap.report import reliability
from tests.helpers import make_config, properties

POINTS = KeypointSet(("a", "b", "c"), measurements=(("length", 0, 1), ("width", 1, 2)))
LEVELS = (0.8, 0.9, 0.95)


def instances(points, covariance=None, score=None, unit=1.0) -> Instances:
    points = np.asarray(points, float)
    n, k, _ = points.shape
    return Instances(
        source=np.array([f"{i}.png" for i in range(n)], dtype=str),
        frame=np.full(n, -1),
        instance=np.zeros(n, np.int32),
        size=np.full((n, 2), 100, np.int32),
        box=np.zeros((n, 4)),
        unit=np.broadcast_to(np.asarray(unit, float), (n, 2)).copy(),
        points=points,
        score=np.full((n, k), 0.5) if score is None else np.asarray(score, float),
        covariance=np.full((n, k, 2, 2), np.nan) if covariance is None else covariance,
    )


def random_covariances(rng, n, k):
    roots = rng.normal(size=(n, k, 2, 2))
    return roots @ np.swapaxes(roots, -1, -2) + 0.1 * np.eye(2)


def test_the_spread_of_a_length_is_that_of_samples():
    rng = np.random.default_rng(0)
    covariance = 0.05 * random_covariances(rng, 1, 3)
    found = instances([[[10, 20], [70, 50], [30, 90]]], covariance)
    a, b = (rng.multivariate_normal(found.points[0, i], covariance[0, i], 100_000) for i in (0, 1))
    lengths = np.hypot(*(b - a).T)
    expected = uncertainty.length_spread(found, ("length", 0, 1))
    np.testing.assert_allclose(expected, lengths.std(), rtol=0.01)


def test_without_maps_a_pixel_of_the_input_is_the_yardstick():
    found = instances([[[0, 0], [3, 0], [3, 4]]], unit=(2.0, 4.0))
    np.testing.assert_allclose(uncertainty.spread(found), np.sqrt((4 + 16) / 2))
    np.testing.assert_allclose(uncertainty.length_spread(found, ("x", 0, 1)), np.sqrt(2) * 2)
    np.testing.assert_allclose(uncertainty.length_spread(found, ("y", 1, 2)), np.sqrt(2) * 4)


@given(st.integers(0, 2**32 - 1))
@properties
def test_probabilities_rise_with_the_score(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    score, right = rng.choice(np.linspace(0, 1, 15), n), rng.random(n) < 0.6
    groups = rng.integers(0, 8, n).astype(str)
    steps = fitting.monotone(score, right, groups)
    found = steps(np.linspace(-1, 2, 50))
    assert (np.diff(found) >= 0).all()
    count = len(np.unique(groups))
    assert found.min() >= 1 / (count + 2) - 1e-12
    assert found.max() <= 1 - 1 / (count + 2) + 1e-12


def test_probabilities_are_the_shares_where_these_rise():
    """But for two groups more in each step, half of which are right as everywhere."""
    score = np.repeat([0.1, 0.5, 0.9], 100)
    right = np.concatenate([np.arange(100) < share for share in (20, 50, 80)])
    steps = fitting.monotone(score, right, np.arange(300).astype(str))
    low, high = 21 / 102, 81 / 102
    np.testing.assert_allclose(
        steps(np.array([0.1, 0.3, 0.5, 0.9, np.nan])), [low, low, 0.5, high, low]
    )


def test_a_step_that_one_group_shows_is_hardly_believed():
    """The lowest of 100 scores is the one that is wrong: the next may as well be right."""
    right = np.arange(100) > 0
    groups = (np.arange(100) % 20).astype(str)
    steps = fitting.monotone(np.linspace(0, 1, 100), right, groups)
    assert steps(np.array([0.0]))[0] == pytest.approx(2 * 0.99 / 3)
    assert steps(np.array([0.5]))[0] == pytest.approx(1 - 1 / 22)
    # Where five groups each show a wrong one, there is more to it.
    steps = fitting.monotone(np.linspace(0, 1, 100), np.arange(100) > 4, groups)
    assert steps(np.array([0.0]))[0] == pytest.approx(2 * 0.95 / 7)


def errors_of(rng, groups, sizes=(1, 6), k=3):
    return errors_and_records(rng, groups, sizes, k)[0]


def errors_and_records(rng, groups, sizes=(1, 6), k=3):
    """Instances of groups whose errors have a common part, and are as large as their spread."""
    names, truth = [], []
    for g in range(groups):
        names += [f"g{g}"] * int(rng.integers(*sizes))
    n = len(names)
    truth = rng.uniform(0, 100, (n, k, 2))
    covariance = random_covariances(rng, n, k)
    shift = rng.normal(size=(groups, 1, 2))[[int(name[1:]) for name in names]]
    spread = np.sqrt(np.trace(covariance, axis1=2, axis2=3) / 2)[..., None]
    found = instances(truth + spread * (shift + rng.normal(size=(n, k, 2))), covariance)
    points = POINTS if k == 3 else KeypointSet(POINTS.names[:k])

    records = types.SimpleNamespace(
        keypoints=truth, labelled=np.ones((n, k), bool), groups=np.array(names)
    )
    return labelled.compare(found, records, points), records


def test_new_groups_are_covered_as_often_as_promised():
    """400 calibrations; each is asked about new groups. Within three standard errors."""
    rng = np.random.default_rng(3)
    reached = []
    for _ in range(400):
        told = fitting.calibrate(errors_of(rng, 25), POINTS, "id", LEVELS, 0.05, absent_known=False)
        rows = fitting.coverage(errors_of(rng, 10), told, POINTS)
        reached.append({(row.what, row.level): row.coverage for row in rows})
    for what in ("points", "length", "width"):
        for level in LEVELS:
            shares = np.array([row[what, level] for row in reached])
            error = 3 * shares.std() / np.sqrt(len(shares))
            assert level - error <= shares.mean() <= level + 1 / 26 + error, (what, level)


def test_a_label_of_a_free_pair_is_taken_in_the_nearer_order():
    found = instances([[[10.0, 10], [50, 10], [30, 30]]])

    class Records:
        keypoints = np.array([[[50.0, 11], [10, 12], [30, 30]]])
        labelled = np.array([[True, True, False]])
        groups = np.array(["a"])

    told = labelled.compare(found, Records, POINTS, free=((0, 1),))
    np.testing.assert_allclose(told.points, [[2.0, 1.0, np.nan]])
    np.testing.assert_allclose(told.lines, [[np.hypot(40, 1) - 40, np.nan]])
    np.testing.assert_allclose(told.reference, np.hypot(40, 1))
    unordered = dataclasses.replace(POINTS, interchangeable_pairs=((0, 1),))
    held = labelled.compare(found, Records, unordered)
    np.testing.assert_allclose(held.points, [[np.hypot(40, 1), np.hypot(40, 2), np.nan]])


def test_too_few_groups_for_any_level_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="3 groups, too few for intervals at 80%, which take 4"):
        fitting.calibrate(errors_of(rng, 3), POINTS, "id", LEVELS, 0.05, False)


def test_levels_that_groups_do_for_are_calibrated():
    """18 groups do for 90 % and not for 95 %, and what they say of 80 % does not depend on that."""
    errors = errors_of(np.random.default_rng(0), 18)
    told = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, False)
    alone = fitting.calibrate(errors, POINTS, "id", (0.8,), 0.05, False)
    for row, other in (
        *((told.points[name], alone.points[name]) for name in POINTS.names),
        *((told.lines[name].factors, alone.lines[name].factors) for name in ("length", "width")),
    ):
        assert np.isnan(row).tolist() == [False, False, True]
        assert row[0] == other[0]
    shown = calibration_lib.table(told)
    assert shown.count(" -\n") == 5
    assert shown.endswith("it takes 4 at 80%, 9 at 90%, 19 at 95%")
    rows = fitting.coverage(errors_of(np.random.default_rng(1), 8), told, POINTS)
    assert {row.level for row in rows} == {0.8, 0.9}


def hidden_in_most_groups():
    """25 groups, ten of which show the third point."""
    errors = errors_of(np.random.default_rng(0), 25)
    hidden = errors.points.copy()
    hidden[~np.isin(errors.groups, [f"g{i}" for i in range(10)]), 2] = np.nan
    return dataclasses.replace(errors, points=hidden)


def test_a_point_that_few_groups_show_has_the_levels_that_these_do_for():
    errors = hidden_in_most_groups()
    told = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, False)
    radii = told.radii(errors.found, POINTS.names)
    assert np.isnan(told.points["c"]).tolist() == [False, False, True]
    assert np.isnan(radii[:, 2, 2]).all()
    assert np.isfinite(radii[:, :2]).all()
    assert np.isfinite(radii[:, 2, :2]).all()


def meaning_of(calibration):
    return Meaning(POINTS, make_config(), calibration, Scales())


def test_tables_have_a_column_for_each_level_and_nothing_where_it_cannot_be_had():
    errors = hidden_in_most_groups()
    told = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, False)
    columns = tables.of_points(errors.found, meaning_of(told))
    third = columns["point"] == "c"
    assert np.isnan(columns["radius_95"][third]).all()
    assert np.isfinite(columns["radius_90"]).all()
    # Discs of a picture are all of one level.
    drawn = overlay._radii(errors.found, meaning_of(told))
    np.testing.assert_array_equal(drawn.ravel(), columns["radius_95"])
    few = fitting.calibrate(
        errors_of(np.random.default_rng(0), 9), POINTS, "id", LEVELS, 0.05, False
    )
    drawn = overlay._radii(errors.found, meaning_of(few))
    np.testing.assert_array_equal(drawn, few.radii(errors.found, POINTS.names)[..., 1])


def test_lengths_are_known_by_their_ends_whatever_their_name():
    told = example()
    found = instances([[[0, 0], [3, 4], [3, 0]]])
    asked = [("other", 1, 0), ("length", 0, 2)]
    expected = np.sqrt(2) * np.array([0.5, 1.0, np.inf])  # of two ends, without maps
    np.testing.assert_allclose(told.half_widths(found, asked)[0, 0], expected)
    assert np.isnan(told.half_widths(found, asked)[0, 1]).all()
    points = dataclasses.replace(POINTS, measurements=tuple(asked))
    assert tables.unknown_lengths(told, points) == ["length"]


def test_the_length_of_a_lost_point_is_not_known():
    found = instances([[[0, 0], [np.nan, np.nan], [3, 4]]])
    points = dataclasses.replace(POINTS, measurements=(("lost", 0, 1), ("known", 0, 2)))
    told = dataclasses.replace(example(), lines={"known": Line(0, 2, (0.5, 1.0, 2.0))})
    meaning = Meaning(points, make_config(), told, Scales(everywhere=Scale(10.0, 1.0)))
    columns = tables.of_lengths(found, meaning)
    for name in ("px", "px_low_80", "px_high_80", "cm", "cm_high_95", "cm_scale_sd"):
        assert np.isnan(columns[name]).tolist() == [True, False], name
    assert columns["cm"][1] == pytest.approx(0.5)


def test_lengths_named_later_are_calibrated():
    """As by --measure: they have the factors that the data set's own measurement would have."""
    errors, records = errors_and_records(np.random.default_rng(0), 25)
    bare = KeypointSet(POINTS.names)
    asked = lengths.with_measurements(bare, ["span=a-b", "w=1-2"])
    found = labelled.compare(errors.found, records, asked)
    told = fitting.calibrate(found, asked, "id", LEVELS, 0.05, False)
    known = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, False)
    assert told.lines["span"] == known.lines["length"]
    assert told.lines["w"] == known.lines["width"]


def test_probabilities_are_checked_on_other_groups():
    """What is stated is so as often as it says, and a calibration of other errors shows."""
    rng = np.random.default_rng(0)
    told = fitting.calibrate(scored(rng, 60), POINTS, "id", LEVELS, 0.05, True)
    bins = fitting.probabilities(scored(rng, 60), told, absent_known=True)
    assert {b.what for b in bins} == {"confidence", "visibility"}
    wide = [b for b in bins if b.share > 0.05]
    assert len(wide) > 6
    for b in wide:
        assert b.low - 0.03 <= b.stated <= b.high + 0.03, b
    worse = fitting.probabilities(scored(rng, 60, noise=3.0), told, absent_known=True)
    first = next(b for b in worse if b.what == "confidence")
    assert first.observed < first.stated - 0.05
    assert first.share == 1.0
    assert not fitting.probabilities(scored(rng, 6), example_without_probabilities(), True)


def scored(rng, groups, noise=1.0):
    """Errors whose score tells how large they are, some of points that are not there."""
    errors = errors_of(rng, groups, sizes=(3, 6))
    present = rng.random(errors.points.shape) < 0.8
    size = rng.uniform(0.1, 8, present.shape)
    off = np.abs(noise * size * rng.normal(size=present.shape))
    score = np.where(present, 1 / (1 + size / 4), rng.uniform(0, 0.6, present.shape))
    return dataclasses.replace(
        errors,
        points=np.where(present, off, np.nan),
        present=present,
        found=dataclasses.replace(errors.found, score=score),
    )


def example_without_probabilities():
    return dataclasses.replace(example(), confidence=None)


def test_bins_by_hand():
    """Two groups, of four cases and of one, weigh the same."""
    stated = np.array([[0.1, 0.3], [0.3, 0.8], [0.8, np.nan]])
    so = np.array([[False, True], [False, True], [False, True]])
    every, low, middle, high = reliability.bins("x", stated, so, np.array(["a", "a", "b"]))
    assert (every.least, every.most, every.groups) == (0.0, 1.0, 2)
    assert every.stated == pytest.approx(((0.1 + 0.3 + 0.3 + 0.8) / 4 + 0.8) / 2)
    assert every.observed == pytest.approx((2 / 4 + 0) / 2)
    assert [b.share for b in (low, middle, high)] == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert middle.observed == pytest.approx(0.5)
    assert high.observed == pytest.approx((1 / 4) / (1 / 4 + 1))
    assert reliability.bins("x", np.full((1, 1), np.nan), so[:1, :1], np.array(["a"])) == []


def test_both_plots_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    told = fitting.calibrate(scored(rng, 30), POINTS, "id", LEVELS, 0.05, True)
    other = scored(rng, 30)
    rows = fitting.coverage(other, told, POINTS)
    bins = fitting.probabilities(other, told, True)
    assert reliability.bins_table(bins).count("confidence") > 2
    for found, name in ((bins, "both"), ([], "one")):
        reliability.draw(rows, found, tmp_path / f"{name}.png")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("one", "both")]
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


def test_why_there_is_no_visibility():
    errors = errors_of(np.random.default_rng(0), 25)
    told = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, True)
    absent = make_config(**{"data.missing": "absent"})
    (why,) = calibration_lib.missing(errors, told, make_config())
    assert "do not tell absent points" in why
    (why,) = calibration_lib.missing(errors, told, absent)
    assert "every point of the cal split is in its picture" in why
    mute = dataclasses.replace(errors.found, score=np.full(errors.points.shape, np.nan))
    (why,) = calibration_lib.missing(dataclasses.replace(errors, found=mute), told, absent)
    assert "without a score" in why
    none = dataclasses.replace(told, confidence=None)
    assert "two labelled points" in calibration_lib.missing(errors, none, absent)[0]


def test_visibility_is_told_where_labels_know_it():
    rng = np.random.default_rng(0)
    errors = errors_of(rng, 40, sizes=(4, 5))
    present = rng.random(errors.points.shape) < 0.7
    score = np.where(
        present, rng.uniform(0.4, 1, present.shape), rng.uniform(0, 0.6, present.shape)
    )
    errors = dataclasses.replace(
        errors,
        present=present,
        points=np.where(present, errors.points, np.nan),
        found=dataclasses.replace(errors.found, score=score),
    )
    told = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, absent_known=True)
    assert told.visibility is not None
    assert told.visibility(np.array([0.1]))[0] < 0.1
    assert told.visibility(np.array([0.9]))[0] > 0.9
    unknown = fitting.calibrate(errors, POINTS, "id", LEVELS, 0.05, absent_known=False)
    assert unknown.visibility is None
    # A point that is not there is not right, wherever it is said to be.
    assert told.confidence(np.array([0.01]))[0] < 0.1 < unknown.confidence(np.array([0.01]))[0]


def test_one_point_has_intervals_and_no_confidence():
    rng = np.random.default_rng(0)
    errors = errors_of(rng, 25, k=1)
    told = fitting.calibrate(errors, KeypointSet(("a",)), "id", LEVELS, 0.05, False)
    assert told.confidence is None
    assert len(told.points["a"]) == 3


def test_groups_that_others_have_seen_are_refused(tmp_path):
    groups = np.array(list("aabbccdd"))
    rows = {"train": np.array([0, 1]), "cal": np.array([2, 4]), "val": np.array([6, 7])}
    assert calibration_lib.cal_rows(tmp_path, groups, rows).tolist() == [2, 4]
    with pytest.raises(UserError, match="The group c is in the cal split and in test"):
        calibration_lib.cal_rows(tmp_path, groups, {**rows, "test": np.array([5])})
    with pytest.raises(UserError, match="without a cal split"):
        calibration_lib.cal_rows(tmp_path, groups, {"train": np.array([0])})


def test_a_calibration_of_crops_is_not_for_whole_pictures(tmp_path):
    told = dataclasses.replace(example(), cropped=True)
    uncertainty.save(tmp_path, told)
    assert uncertainty.load_for(tmp_path, told.identity, boxed=True) == told
    assert uncertainty.load_for(tmp_path, told.identity, boxed=False) is None
    ids = np.array(["a", "a", "b"])
    assert calibration_lib.are_crops(ids, "auto")
    assert calibration_lib.are_crops(ids[1:], "box")
    assert not calibration_lib.are_crops(ids[1:], "auto")


def example():
    return Calibration(
        identity="abcdef0123456789ff",
        levels=LEVELS,
        groups=30,
        examples=60,
        points={"a": (1.0, 2.0, 3.0), "b": (1.0, 1.5, 2.0)},
        lines={"length": Line(0, 1, (0.5, 1.0, np.inf))},
        within=0.05,
        confidence=Steps((0.1, 0.6), (0.2, 0.9)),
    )


def test_a_calibration_is_read_back(tmp_path):
    for told in (example(), dataclasses.replace(example(), visibility=Steps((0.0,), (0.5,)))):
        uncertainty.save(tmp_path, told)
        assert uncertainty.load(tmp_path, told.identity) == told
    assert uncertainty.load(tmp_path, "another") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda told: told.pop("levels"),
        lambda told: told.update(points={"a": [1.0]}),
        lambda told: told.update(confidence={"scores": [], "values": []}),
        lambda told: told.update(identity="x"),
        lambda told: told.update(lines=[1]),
        lambda told: told.update(lines={"length": [0.5, 1.0, 2.0]}),
        lambda told: told.update(lines={"length": {"a": 0, "b": 1, "factors": [1.0]}}),
        lambda told: told.update(levels=[0.8, 0.9, 1.5]),
        lambda told: told.update(more=1),
    ],
)
def test_a_damaged_calibration_is_a_sentence(tmp_path, damage):
    path = uncertainty.save(tmp_path, example())
    told = json.loads(path.read_text())
    damage(told)
    path.write_text(json.dumps(told))
    with pytest.raises(UserError, match="is no calibration"):
        uncertainty.load(tmp_path, example().identity)
    path.write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        uncertainty.load(tmp_path, example().identity)


def test_instances_are_read_back(tmp_path):
    rng = np.random.default_rng(0)
    found = instances(rng.normal(size=(4, 3, 2)), random_covariances(rng, 4, 3))
    save(tmp_path / "a.parquet", found, [["0.png", "stamp", -1, True]])
    again = load(tmp_path / "a.parquet")
    for field in dataclasses.fields(Instances):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
    assert pictures_in(tmp_path / "a.parquet") == [["0.png", "stamp", -1, True]]
    save(tmp_path / "b.parquet", found.take(np.zeros(4, bool)), [])
    assert load(tmp_path / "b.parquet").points.shape == (0, 3, 2)
    assert len(joined([again, load(tmp_path / "b.parquet")])) == 4
    (tmp_path / "c.parquet").write_text("nothing")
    assert pictures_in(tmp_path / "c.parquet") == []


def test_a_calibration_of_an_earlier_version_is_a_sentence(tmp_path):
    path = uncertainty.save(tmp_path, example())
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(UserError, match="another version of this program"):
        uncertainty.load(tmp_path, example().identity)


BAR = [[10.0, 5], [110, 5], [0, 0]]


def test_a_scale_bar_is_as_uncertain_as_its_ends():
    """As their maps say where nothing is calibrated, and never not at all."""
    config = make_config()
    covariance = np.zeros((1, 3, 2, 2))
    covariance[0, 0], covariance[0, 1] = np.diag([90.0, 40.0]), np.diag([60.0, 70.0])
    found = instances([BAR], covariance)
    scale, sd = Scales(bar=Bar(0, 1, 2.0)).of(found, config, None)
    np.testing.assert_allclose(scale, 50.0)
    ends = place.covariances(found, config)[0, :2, 0, 0]
    np.testing.assert_allclose(sd, np.sqrt(ends.sum()) / 2)
    narrow = dataclasses.replace(found, covariance=1e-9 * np.ones((1, 3, 1, 1)) * np.eye(2))
    assert Scales(bar=Bar(0, 1, 2.0)).of(narrow, config, None)[1] > 0.01


def test_a_calibrated_scale_bar_has_the_deviation_that_its_interval_says():
    """Of its own length where that was calibrated, else of its ends; of normal errors, the true."""
    rng = np.random.default_rng(0)
    n, sd = 4000, 1.5
    truth = np.broadcast_to(np.array(BAR), (n, 3, 2))
    found = instances(truth + sd * rng.normal(size=truth.shape))

    class Records:
        keypoints, labelled = truth, np.ones((n, 3), bool)
        groups = np.arange(n).astype(str)

    for points in (POINTS, KeypointSet(POINTS.names)):
        errors = labelled.compare(found, Records, points)
        told = fitting.calibrate(errors, points, "id", LEVELS, 0.05, False)
        _, deviation = Scales(bar=Bar(1, 0, 2.0)).of(found, make_config(), told)
        np.testing.assert_allclose(deviation, np.sqrt(2) * sd / 2, rtol=0.03)
    bare = dataclasses.replace(told, points=dict.fromkeys(POINTS.names, (np.nan,) * 3))
    assert np.isnan(bare.length_sd(found, ("bar", 0, 1))).all()


def test_scales_fall_through_where_the_bar_is_not_found():
    """To the table and then to the number for all; each instance by itself."""
    points = np.array([BAR] * 4)
    points[1, 0] = np.nan
    points[2, 0] = points[2, 1]
    points[3, 1] = np.inf
    found = instances(points)
    told = Scales(
        bar=Bar(0, 1, 2.0), by_name={"1.png": Scale(7.0, 0.5)}, everywhere=Scale(3.0, 0.1)
    )
    scale, sd = told.of(found, make_config(), example())
    np.testing.assert_allclose(scale, [50.0, 7.0, 3.0, 3.0])
    np.testing.assert_allclose(sd[1:], [0.5, 0.1, 0.1])
    assert sd[0] > 0
    scale, _ = Scales(bar=Bar(0, 1, 2.0)).of(found, make_config(), None)
    assert np.isnan(scale).tolist() == [False, True, True, True]


def test_a_bar_that_is_likely_not_in_the_picture_is_not_found():
    found = instances([BAR, BAR], score=[[0.9, 0.9, 0.1], [0.9, 0.2, 0.9]])
    told = dataclasses.replace(example(), visibility=Steps((0.0, 0.5), (0.1, 0.9)))
    scale, _ = Scales(bar=Bar(0, 1, 2.0), everywhere=Scale(3.0)).of(found, make_config(), told)
    np.testing.assert_allclose(scale, [50.0, 3.0])


def test_scales_are_found_by_the_end_of_a_path(tmp_path):
    path = tmp_path / "scales.csv"
    path.write_text(
        "file,px_per_cm,x0,y0,x1,y1,cm,point_sd\nb/0.png,,10,10,40,50,2,0.5\n1.png,7,,,,,,\n"
    )
    table = scales.read(path)
    assert table["b/0.png"] == Scale(25.0, np.sqrt(2) * 0.5 / 2)
    found = instances(np.zeros((3, 3, 2)))
    found = dataclasses.replace(found, source=np.array(["a/b/0.png", "b0.png", "x/1.png"]))
    told = Scales(by_name=table, everywhere=Scale(3.0)).of(found, make_config(), None)
    np.testing.assert_allclose(told[0], [25.0, 3.0, 7.0])
    assert scales.parse("782.9,1.5") == Scale(782.9, 1.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no scale"),
        ("file,px_per_cm\na.png,-1\n", "line 2: needs"),
        (
            "file,px_per_cm\na.png,1\na.png,2\n",
            "line 3: the file 'a.png' is missing",
        ),
        ("file,x0,y0,x1,y1,cm\na.png,1,1,1,1,1\n", "line 2: needs"),
        ("file,x0,y0,x1,y1\na.png,1,1,1,1\n", "line 2: needs"),
        ("file,px_per_cm\na.png,nan\n", "line 2: needs"),
    ],
)
def test_tables_of_scales_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "scales.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        scales.read(tmp_path / "scales.csv")

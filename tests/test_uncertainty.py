"""From maps to intervals: yardsticks, factors, probabilities, scales."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import calibration as calibration_lib
from heatmap.errors import UserError
from heatmap.inference import scales, uncertainty
from heatmap.inference.instances import Instances, joined, load, pictures_in, save
from heatmap.inference.scales import Bar, Scale, Scales
from heatmap.inference.uncertainty import Calibration, Steps
from heatmap.keypoints import KeypointSet
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


def test_what_the_targets_blur_is_taken_off():
    config = make_config(
        **{"data.image_size": (64, 64), "targets.heatmap_size": (32, 16), "targets.sigma": 1.5}
    )
    place = np.array([[3.0, 1.0], [1.0, 2.0]])
    blur = np.diag([(1.5 * 4 * 2) ** 2, (1.5 * 2 * 3) ** 2])
    wide = np.broadcast_to(place + blur, (1, 3, 2, 2))
    found = instances(np.zeros((1, 3, 2)), wide.copy(), unit=(2.0, 3.0))
    left = uncertainty.place_covariances(found, config)
    np.testing.assert_allclose(left[0, 0], place)
    narrow = dataclasses.replace(found, covariance=0.5 * blur[None, None].repeat(3, 1))
    np.testing.assert_allclose(uncertainty.place_covariances(narrow, config), 0, atol=1e-9)


@given(st.integers(0, 2**32 - 1))
@properties
def test_probabilities_rise_with_the_score(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    score, right = rng.choice(np.linspace(0, 1, 15), n), rng.random(n) < 0.6
    groups = rng.integers(0, 8, n).astype(str)
    steps = uncertainty.monotone(score, right, groups)
    found = steps(np.linspace(-1, 2, 50))
    assert (np.diff(found) >= 0).all()
    count = len(np.unique(groups))
    assert found.min() >= 1 / (count + 2) - 1e-12
    assert found.max() <= 1 - 1 / (count + 2) + 1e-12
    # The whole is as likely as it was, but for what is kept away from 0 and 1.
    weight = 1 / np.unique(groups, return_counts=True)[1][np.unique(groups, return_inverse=True)[1]]
    mean = np.average(steps(score), weights=weight)
    assert mean == pytest.approx(np.average(right, weights=weight), abs=1 / (count + 2) + 1e-9)


def test_probabilities_are_the_shares_where_these_rise():
    score = np.repeat([0.1, 0.5, 0.9], 100)
    right = np.concatenate([np.arange(100) < share for share in (20, 50, 80)])
    steps = uncertainty.monotone(score, right, np.arange(300).astype(str))
    np.testing.assert_allclose(
        steps(np.array([0.1, 0.3, 0.5, 0.9, np.nan])), [0.2, 0.2, 0.5, 0.8, 0.2]
    )


def errors_of(rng, groups, sizes=(1, 6), k=3):
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

    class Records:
        keypoints, labelled = truth, np.ones((n, k), bool)

    Records.groups = np.array(names)
    return calibration_lib.compare(found, Records, points)


def test_new_groups_are_covered_as_often_as_promised():
    """400 calibrations; each is asked about new groups. Within three standard errors."""
    rng = np.random.default_rng(3)
    reached = []
    for _ in range(400):
        told = calibration_lib.calibrate(
            errors_of(rng, 25), POINTS, "id", LEVELS, 0.05, absent_known=False
        )
        rows = calibration_lib.coverage(errors_of(rng, 10), told, POINTS)
        reached.append({(row.what, row.level): row.coverage for row in rows})
    for what in ("points", "length", "width"):
        for level in LEVELS:
            shares = np.array([row[what, level] for row in reached])
            error = 3 * shares.std() / np.sqrt(len(shares))
            assert level - error <= shares.mean() <= level + 1 / 26 + error, (what, level)


def test_a_label_of_a_pair_is_taken_in_the_nearer_order():
    points = dataclasses.replace(POINTS, interchangeable_pairs=((0, 1),))
    found = instances([[[10.0, 10], [50, 10], [30, 30]]])

    class Records:
        keypoints = np.array([[[50.0, 11], [10, 12], [30, 30]]])
        labelled = np.array([[True, True, False]])
        groups = np.array(["a"])

    told = calibration_lib.compare(found, Records, points)
    np.testing.assert_allclose(told.points, [[2.0, 1.0, np.nan]])
    np.testing.assert_allclose(told.lines, [[np.hypot(40, 1) - 40, np.nan]])
    np.testing.assert_allclose(told.reference, np.hypot(40, 1))


def test_too_few_groups_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="18 groups, too few for intervals at 95%, which take 19"):
        calibration_lib.calibrate(errors_of(rng, 18), POINTS, "id", LEVELS, 0.05, False)
    told = calibration_lib.calibrate(errors_of(rng, 18), POINTS, "id", (0.8, 0.9), 0.05, False)
    assert told.groups == 18


def test_a_point_that_few_groups_show_has_no_interval():
    rng = np.random.default_rng(0)
    errors = errors_of(rng, 25)
    hidden = errors.points.copy()
    hidden[~np.isin(errors.groups, [f"g{i}" for i in range(10)]), 2] = np.nan
    errors = dataclasses.replace(errors, points=hidden)
    told = calibration_lib.calibrate(errors, POINTS, "id", LEVELS, 0.05, False)
    assert told.points["c"] == ()
    assert np.isnan(told.radii(errors.found, POINTS.names)[:, 2]).all()
    assert np.isfinite(told.radii(errors.found, POINTS.names)[:, :2]).all()


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
    told = calibration_lib.calibrate(errors, POINTS, "id", LEVELS, 0.05, absent_known=True)
    assert told.visibility is not None
    assert told.visibility(np.array([0.1]))[0] < 0.1
    assert told.visibility(np.array([0.9]))[0] > 0.9
    unknown = calibration_lib.calibrate(errors, POINTS, "id", LEVELS, 0.05, absent_known=False)
    assert unknown.visibility is None
    # A point that is not there is not right, wherever it is said to be.
    assert told.confidence(np.array([0.01]))[0] < 0.1 < unknown.confidence(np.array([0.01]))[0]


def test_one_point_has_intervals_and_no_confidence():
    rng = np.random.default_rng(0)
    errors = errors_of(rng, 25, k=1)
    told = calibration_lib.calibrate(errors, KeypointSet(("a",)), "id", LEVELS, 0.05, False)
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
        points={"a": (1.0, 2.0, 3.0), "b": ()},
        lines={"length": (0.5, 1.0, np.inf)},
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


def test_a_scale_bar_is_as_uncertain_as_its_ends():
    covariance = np.zeros((1, 3, 2, 2))
    covariance[0, 0], covariance[0, 1] = np.diag([0.3, 9.0]), np.diag([0.1, 9.0])
    found = instances([[[10, 5], [110, 5], [0, 0]]])
    scale, sd = Scales(bar=Bar(0, 1, 2.0)).of(found, covariance)
    np.testing.assert_allclose(scale, 50.0)
    np.testing.assert_allclose(sd, np.sqrt(0.4) / 2)


def test_scales_are_found_by_the_end_of_a_path(tmp_path):
    path = tmp_path / "scales.csv"
    path.write_text(
        "file,px_per_cm,x0,y0,x1,y1,cm,point_sd\nb/0.png,,10,10,40,50,2,0.5\n1.png,7,,,,,,\n"
    )
    table = scales.read(path)
    assert table["b/0.png"] == Scale(25.0, np.sqrt(2) * 0.5 / 2)
    found = instances(np.zeros((3, 3, 2)))
    found = dataclasses.replace(found, source=np.array(["a/b/0.png", "b0.png", "x/1.png"]))
    told = Scales(by_name=table, everywhere=Scale(3.0)).of(found, found.covariance)
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

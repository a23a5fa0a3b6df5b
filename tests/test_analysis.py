"""What the analysis of saved predictions finds, against numbers made by hand."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from heatmap import metrics, prediction_table
from heatmap.errors import UserError
from heatmap.report import ablation, analysis, budget, explanations, methods
from heatmap.report.findings import (
    BOTH_RIGHT,
    BOTH_WRONG,
    DECODING,
    FIRST_ONLY,
    ORDERED,
    REMAINDER,
    ROUNDING,
    SECOND_ONLY,
    UNORDERED,
    Ablation,
    AblationRow,
    Calibration,
    Interval,
    LogLine,
)
from tests.helpers import make_config, properties
from tests.methods import BLIND, POINTS, figures, method, off_by

TRUTH = figures(60)
RNG = np.random.default_rng(7)
SMALL, LARGE = RNG.uniform(0, 8, (60, 3)), RNG.uniform(0, 40, (60, 3))
UNET = method("unet", TRUTH, off_by(TRUTH, SMALL), score=1 / (1 + SMALL), points=POINTS)
REGRESSION = method("regression", TRUTH, off_by(TRUTH, LARGE), **{"model.name": "regression"})


def compare(*runs, **settings):
    return analysis.compare(runs, "test", draws=400, **settings)


@pytest.fixture(scope="module")
def found():
    return compare(UNET, REGRESSION)


def curve_of(comparison, name, order=ORDERED):
    return next(c for c in comparison.curves if (c.method, c.order) == (name, order)).pck


def whole(comparison, quantity="pck", order=ORDERED):
    tests = [t for t in comparison.tests if not t.point]
    return [t for t in tests if (t.quantity, t.order) == (quantity, order)]


def said(comparison, *sections):
    return " ".join(line for s in sections or comparison.text for line in comparison.text[s])


def test_curves_are_the_metrics_of_evaluation():
    predicted = UNET.predictions.predicted.copy()
    predicted[::3] = predicted[::3, [0, 2, 1]]
    mixed = method("mixed", TRUTH, predicted)
    found = compare(mixed)
    sized = dataclasses.replace(mixed.predictions, sizes=np.full((60, 2), 128))
    scores = metrics.pck(sized, POINTS, make_config().eval)
    assert scores["pck@0.1"] < scores["pck@0.1/unordered"]
    for t in (0.05, 0.1, 0.15, 0.2):
        assert curve_of(found, "mixed").at(t).value == pytest.approx(scores[f"pck@{t:g}"])
        unordered = curve_of(found, "mixed", UNORDERED).at(t).value
        assert unordered == pytest.approx(scores[f"pck@{t:g}/unordered"])


def test_curves_rise_within_their_bands(found):
    for curve in found.curves:
        pck = curve.pck
        assert (np.diff(pck.value) >= 0).all()
        assert ((pck.low <= pck.value) & (pck.value <= pck.high)).all()
        assert (pck.low >= 0).all()
        assert (pck.high <= 1).all()
        assert pck.thresholds[[0, -1]].tolist() == [0.0, 0.3]
    with pytest.raises(KeyError):
        found.curves[0].pck.at(0.123)


def test_paired_differences_and_their_p_values(found):
    test = next(t for t in whole(found) if t.threshold == 0.1)
    right = [(distances <= 10).astype(float) for distances in (SMALL, LARGE)]
    assert test.difference.value == pytest.approx((right[0] - right[1]).mean())
    assert (test.first, test.second, test.better) == ("unet", "regression", "unet")
    assert test.is_clear
    per_picture = (right[0] - right[1]).sum(axis=1)
    assert test.differing == (per_picture != 0).sum()
    error = whole(found, "error_px")[0]
    assert error.difference.value == pytest.approx((SMALL - LARGE).mean())
    assert error.better == "unet"
    normal = scipy.stats.norm.interval(
        0.95, error.difference.value, scipy.stats.sem((SMALL - LARGE).mean(axis=1))
    )
    assert (error.difference.low, error.difference.high) == pytest.approx(normal, abs=0.7)


def test_holm_counts_the_family(found):
    tests = [t for t in found.tests if not t.point]
    least = min(t.p for t in tests)
    assert min(t.adjusted for t in tests) == pytest.approx(min(1.0, len(tests) * least))


def test_keypoints_by_hand(found):
    nose = found.keypoints[0]
    assert (nose.method, nose.point, nose.count, nose.lost) == ("unet", "nose", 60, 0)
    assert nose.mean.value == pytest.approx(SMALL[:, 0].mean())
    assert nose.median.value == pytest.approx(np.median(SMALL[:, 0]))
    assert nose.p95.value == pytest.approx(np.quantile(SMALL[:, 0], 0.95))
    assert nose.bias_x.value == pytest.approx(SMALL[:, 0].mean())
    assert nose.bias_y.value == pytest.approx(0.0, abs=1e-9)
    assert nose.bias_x.excludes(0.0)
    assert not nose.bias_y.excludes(0.0)
    assert nose.pck[0].value == pytest.approx((SMALL[:, 0] <= 5).mean())


def test_the_slope_tells_a_pull_to_the_mean_place():
    middle = TRUTH.mean(axis=0)
    pulled = method("pulled", TRUTH, middle + 0.25 * (TRUTH - middle))
    comparison = compare(method("exact", TRUTH, TRUTH), pulled)
    slopes = [k.slope.value for k in comparison.keypoints]
    assert slopes == pytest.approx([1.0] * 3 + [0.25] * 3)
    told = said(comparison, "why")
    assert "that of pulled lies 0.25 px further" in told
    assert "there the predictions spread less than the truth" in told
    assert "that of exact lies 1 px further on average over keypoints; no interval" in told


def test_whether_a_few_points_hold_the_error_is_said():
    few = np.full((40, 3), 2.0)
    few[0] = 60.0
    told = said(compare(method("few", TRUTH[:40], off_by(TRUTH[:40], few))), "why")
    share = 3 * 60**2 / (3 * 60**2 + 117 * 2**2)
    assert f"The 2.5 % of points that few has wrong at 0.1 hold {100 * share:.3g} % of" in told
    none = said(compare(method("none", TRUTH, off_by(TRUTH, np.full((60, 3), 2.0)))), "why")
    assert "none has no point wrong at 0.1; the median error of all is 2.00 px." in none


def test_failures_are_grouped_counted_and_ranked():
    first = np.array([[2.0, 30.0, 30.0], [2.0, 3.0, 50.0]])
    second = np.array([[15.0, 4.0, 40.0], [25.0, 4.0, 45.0]])
    truth = figures(2)
    a, b = method("a", truth, off_by(truth, first)), method("b", truth, off_by(truth, second))
    (failures,) = compare(a, b).failures
    assert failures.counts == {FIRST_ONLY: 2, SECOND_ONLY: 1, BOTH_WRONG: 2, BOTH_RIGHT: 1}
    places = {g: [(c.row, c.point) for c in cases] for g, cases in failures.cases.items()}
    assert places[FIRST_ONLY] == [(1, 0), (0, 0)]  # 23 px apart, then 13
    assert places[SECOND_ONLY] == [(0, 1)]
    assert places[BOTH_WRONG] == [(1, 2), (0, 2)]  # the better of the two: 45, then 30
    case = failures.cases[FIRST_ONLY][0]
    assert case.errors == pytest.approx((2.0, 25.0))
    assert case.relative == pytest.approx((0.02, 0.25))


def test_rows_sum_up_pictures(found):
    row = found.images[3]
    assert (row.row, row.id, row.group) == (3, "3.png", "g3")
    assert row.error == pytest.approx((SMALL[3].mean(), LARGE[3].mean()))
    assert row.worst == pytest.approx((SMALL[3].max(), LARGE[3].max()))
    assert row.right == pytest.approx(((SMALL[3] <= 10).mean(), (LARGE[3] <= 10).mean()))
    assert np.isnan(row.score[1])


def test_calibration_bins_cover_all_points(found):
    score, entropy = found.calibrations
    assert (score.method, score.signal, entropy.signal) == ("unet", "score", "entropy")
    assert sum(b.count for b in score.bins) == 180
    assert max(b.count for b in score.bins) <= 2 * min(b.count for b in score.bins)
    signal = 1 / (1 + SMALL)
    expected = scipy.stats.spearmanr(signal.ravel(), SMALL.ravel()).statistic
    assert score.correlation.value == pytest.approx(expected)
    first = score.bins[0]
    inside = (signal >= first.low) & (signal <= first.high)
    assert first.median_error == pytest.approx(np.median(SMALL[inside]))
    assert first.mean == pytest.approx(signal[inside].mean())


def test_the_ceiling_is_computed_from_the_labels():
    guess = TRUTH.copy()
    swapped = np.arange(60) % 2 == 0
    guess[swapped] = guess[swapped][:, [0, 2, 1]]
    comparison = compare(method("guess", TRUTH, guess, points=BLIND))
    assert comparison.order == UNORDERED
    best = comparison.ceiling.at(0.1)
    # Of three points, the pair is always 100 px apart: one of two is right in expectation.
    assert best.value == pytest.approx(2 / 3)
    assert best.contains(curve_of(comparison, "guess").at(0.1).value)
    assert curve_of(comparison, "guess", UNORDERED).at(0.1).value == 1.0
    assert "guess has 0.667, within it" in said(comparison, "ceiling")
    assert compare(UNET).ceiling is None


def test_two_predictions_of_one_point_are_told():
    """A model that may not know the order can only be half right if it says one point twice."""
    both, one = TRUTH.copy(), TRUTH.copy()
    one[:45, 2] = TRUTH[:45, 1] + 1
    comparison = compare(
        method("both", TRUTH, both, points=BLIND), method("one", TRUTH, one, points=BLIND)
    )
    told = said(comparison, "why")
    assert "In 75 % of the 60 pairs of left and right" in told
    assert "both predictions of one are nearest to the same one of the two; loss.inter" in told
    assert "In 0 % of the 60 pairs" in told
    assert "nearest to the same" not in said(compare(UNET), "why")


def test_without_an_exchange_nothing_is_said_twice():
    kept = compare(method("kept", TRUTH, TRUTH))
    assert {c.order for c in kept.curves} == {ORDERED}
    swapped = compare(method("kept", TRUTH, TRUTH), method("swapped", TRUTH, TRUTH[:, [0, 2, 1]]))
    assert {c.order for c in swapped.curves} == {ORDERED, UNORDERED}


@pytest.mark.parametrize(
    ("pck", "error", "told"),
    [
        ((0.5, 0.9), (2, 1), "test/pck@0.05 is best with seed2=b: 0.9; worst with seed2=a: 0.5"),
        ((0.99, 1.0), (1, 2), "at least 0.95 everywhere; test/error_px is best with seed2=a: 1;"),
        ((0.9, 0.9, 0.2), (1, 1, 2), "is best with 2 of 3 settings: 0.9; worst with seed2=c: 0.2"),
        ((1.0, 1.0), (1, 1), "test/error_px is 1 with every setting"),
        ((np.nan, 0.9), (np.nan, 2), "test/pck@0.05 is 0.9 with every setting"),
    ],
)
def test_an_ablation_is_told_by_a_score_that_tells(pck, error, told):
    rows = tuple(
        AblationRow((name,), 1, scores, (np.nan, np.nan))
        for name, *scores in zip("abc", pck, error, strict=False)
    )
    sweep = Ablation("sweep", ("seed2",), ("test/pck@0.05", "test/error_px"), rows, ())
    (sentence,) = compare(UNET, ablations=[sweep]).text["ablation"]
    assert told in sentence


def test_the_text_says_that_the_first_wins(found):
    text = said(found, "summary")
    assert "unet finds more points than regression at every threshold" in text
    assert "The mean error of unet is smaller than that of regression" in text
    assert "unet is ahead at nose" in said(found, "keypoints")
    assert "The score of unet tells how far off a point is" in said(found, "calibration")
    assert "regression gives coordinates without a score" in said(found, "calibration")


@pytest.mark.parametrize(("value", "verdict"), [(-0.2, "tells weakly how"), (-0.5, "tells how")])
def test_a_weak_correlation_is_called_weak(value, verdict):
    correlation = Interval(value, value - 0.1, value + 0.1)
    sentence = explanations._telling(Calibration("unet", "score", (), correlation, 0.1))
    assert f"The score of unet {verdict} far off a point is" in sentence


def test_the_text_says_that_the_second_wins():
    comparison = compare(
        method("unet", TRUTH, off_by(TRUTH, LARGE)),
        method("regression", TRUTH, off_by(TRUTH, SMALL)),
    )
    text = said(comparison, "summary")
    assert "regression finds more points than unet at every threshold" in text
    assert "The mean error of regression is smaller than that of unet" in text
    assert "unet finds more" not in said(comparison)
    gain = (SMALL <= 5).mean() - (LARGE <= 5).mean()
    assert f"difference {gain:.3f} [" in text


def test_the_text_says_that_nothing_can_be_told():
    again = RNG.permutation(SMALL)
    comparison = compare(UNET, method("other", TRUTH, off_by(TRUTH, again)))
    text = said(comparison, "summary", "keypoints")
    assert "No difference in PCK between unet and other can be told" in text
    assert "cannot be told apart" in text
    assert "finds more" not in text
    assert "is ahead" not in text


def test_a_clear_difference_at_some_thresholds_is_said_of_those_only():
    second = np.where(SMALL <= 6, SMALL + 6, SMALL)  # worse below 0.1, right there as well
    comparison = compare(UNET, method("coarse", TRUTH, off_by(TRUTH, np.minimum(second, 9.0))))
    text = said(comparison, "summary")
    assert "unet finds more points than coarse at 0.05:" in text
    assert "At 0.1, 0.15 and 0.2 the two cannot be told apart" in text


def test_lost_predictions_are_wrong_and_said_to_be_lost():
    predicted = off_by(TRUTH, SMALL)
    predicted[0, 0] = np.nan
    comparison = compare(method("lossy", TRUTH, predicted), REGRESSION)
    assert comparison.keypoints[0].lost == 1
    assert np.isinf(comparison.keypoints[0].mean.value)
    assert np.isfinite(comparison.keypoints[0].bias_x.value)
    error = whole(comparison, "error_px")[0]
    assert np.isnan([error.p, error.difference.value]).all()
    assert "cannot be compared" in said(comparison, "summary")


def test_one_group_gives_no_intervals_and_no_verdict():
    groups = np.full(60, "video")
    runs = [
        method(name, TRUTH, off_by(TRUTH, d), groups=groups)
        for name, d in (("a", SMALL), ("b", LARGE))
    ]
    comparison = compare(*runs)
    assert comparison.groups == 1
    assert np.isnan(curve_of(comparison, "a").low).all()
    assert not any(t.is_clear for t in comparison.tests)
    assert "no intervals" in said(comparison, "statistics")
    assert "finds more" not in said(comparison)


def test_training_is_described_from_the_log():
    log = tuple(LogLine(e, 10 * e, 1.0 / e, v) for e, v in ((1, 0.4), (2, 0.2), (3, 0.3)))
    comparison = compare(method("a", TRUTH, TRUTH, log=log))
    assert "lowest, 0.2, after epoch 2 of 3; by the end it had risen by 50 %" in said(
        comparison, "training"
    )


@properties
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_identical_methods_are_never_told_apart(seed, count):
    rng = np.random.default_rng(seed)
    truth = figures(count, seed)
    predicted = off_by(truth, rng.exponential(8, (count, 3)))
    a, b = (method(name, truth, predicted) for name in "ab")
    for test in analysis.compare((a, b), "test", draws=50, seed=seed).tests:
        assert test.difference.contains(0.0)
        assert test.p == 1.0
        assert not test.is_clear


@properties
@given(st.permutations(range(12)))
def test_the_order_of_examples_does_not_matter(order):
    rows = list(order)
    truth = figures(12)
    a, b = (method(n, truth, off_by(truth, d[:12])) for n, d in (("a", SMALL), ("b", LARGE)))
    mixed = [
        dataclasses.replace(
            m,
            predictions=m.predictions.take(rows),
            errors=m.errors[rows],
            unordered_errors=m.unordered_errors[rows],
            reference=m.reference[rows],
        )
        for m in (a, b)
    ]
    straight, shuffled = (analysis.compare(m, "test", draws=40) for m in ((a, b), mixed))
    assert straight.tests == shuffled.tests
    np.testing.assert_allclose(straight.curves[0].pck.low, shuffled.curves[0].pck.low)
    assert straight.failures[0].counts == shuffled.failures[0].counts
    aligned = methods.align((a, mixed[1]))
    np.testing.assert_array_equal(aligned[1].errors, b.errors)


def test_a_seed_gives_the_same_comparison_and_another_seed_another():
    one, again, other = (compare(UNET, REGRESSION, seed=s) for s in (0, 0, 1))
    assert one.text == again.text
    assert one.tests == again.tests
    assert one.tests != other.tests


def test_methods_of_other_data_are_refused():
    other = method("other", TRUTH + 5, TRUTH)
    with pytest.raises(UserError, match="other labels"):
        methods.align((UNET, other))
    with pytest.raises(UserError, match="not scored on the same examples"):
        methods.align((UNET, method("fewer", TRUTH[:9], TRUTH[:9])))
    with pytest.raises(UserError, match="do not predict the same points"):
        methods.align((UNET, method("blind", TRUTH, TRUTH, points=BLIND)))


def test_names_are_as_long_as_it_takes(tmp_path):
    a, b = tmp_path / "x" / "run", tmp_path / "y" / "run"
    assert methods.names_of([a, b]) == ["x/run", "y/run"]
    assert methods.names_of([a, tmp_path / "z"]) == ["run", "z"]
    with pytest.raises(UserError, match="given twice"):
        methods.names_of([a, a])


def test_predictions_are_read_back(tmp_path):
    weight = np.ones((60, 3))
    weight[4, 1] = 0
    saved = method("a", TRUTH, off_by(TRUTH, SMALL), score=SMALL, weight=weight).predictions
    path = tmp_path / "test.parquet"
    prediction_table.save(path, saved, POINTS.names, csv=False)
    loaded = prediction_table.load(path, POINTS.names)
    np.testing.assert_array_equal(loaded.ids, saved.ids)
    np.testing.assert_array_equal(loaded.groups, saved.groups)
    np.testing.assert_array_equal(loaded.predicted, saved.predicted)
    np.testing.assert_array_equal(loaded.weight, saved.weight)
    np.testing.assert_allclose(loaded.score, saved.score, rtol=1e-6)
    labelled = weight > 0
    np.testing.assert_array_equal(loaded.truth[labelled], saved.truth[labelled])
    assert np.isnan(loaded.truth[4, 1]).all()
    with pytest.raises(UserError, match="does not hold the points"):
        prediction_table.load(path, ("nose", "right", "left"))
    with pytest.raises(UserError, match="There is no"):
        prediction_table.load(tmp_path / "val.parquet", POINTS.names)
    path.write_text("no parquet")
    with pytest.raises(UserError, match="no file of predictions"):
        prediction_table.load(path, POINTS.names)


HALF = np.array([[[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1.0]]])  # a resize by one half


def test_the_budget_of_argmax_is_its_quantisation():
    """A pixel of the maps is 4 × 4 px of the original here: 4 · √(1/6) root mean square."""
    truth = np.random.default_rng(0).uniform(20, 200, (400, 3, 2))
    run = method("a", truth, off_by(truth, np.full((400, 3), 3.0)), **{"decoder.name": "argmax"})
    total, _ = budget.measure(run, np.repeat(HALF, 400, axis=0), ORDERED, 0.1)
    parts = {part.name: part for part in total.parts}
    assert total.stride == pytest.approx((4.0, 4.0))
    assert total.rmse == pytest.approx(3.0)
    assert parts[DECODING].rmse == pytest.approx(4 / np.sqrt(6), rel=0.03)
    assert ROUNDING not in parts
    assert sum(part.share for part in total.parts) == pytest.approx(1.0)
    assert parts[REMAINDER].rmse == pytest.approx(np.sqrt(9 - 16 / 6), rel=0.03)


def test_the_budget_of_dark_and_of_coordinates_is_all_the_models():
    truth = np.random.default_rng(0).uniform(40, 200, (20, 3, 2))
    for settings in ({}, {"model.name": "regression", "loss.name": "coordinate_mse"}):
        run = method("a", truth, off_by(truth, np.full((20, 3), 3.0)), **settings)
        total, near = budget.measure(run, np.repeat(HALF, 20, axis=0), ORDERED, 1.0)
        assert total.parts[0].rmse < 1e-3
        assert total.parts[-1].share == pytest.approx(1.0, abs=1e-6)
        assert near.count == 60
        assert np.isnan(total.stride[0]) == bool(settings)


def test_labels_in_whole_pixels_are_noticed():
    truth = np.round(figures(30)) + 0.5
    assert budget.labels_are_rounded(method("a", truth, truth).predictions)
    assert not budget.labels_are_rounded(UNET.predictions)
    rng = np.random.default_rng(0)
    moved = rng.uniform(-0.5, 0.5, (100_000, 2))  # what rounding does, simulated
    total, _ = budget.measure(
        method("a", truth, truth + 1.0), np.repeat(HALF, 30, axis=0), ORDERED, 0.1
    )
    part = next(p for p in total.parts if p.name == ROUNDING)
    distances = np.hypot(*moved.T)
    assert part.rmse == pytest.approx(np.sqrt((distances**2).mean()), rel=0.01)
    assert part.median == pytest.approx(np.median(distances), rel=0.01)


def test_a_sweep_is_averaged_over_seeds(tmp_path):
    (tmp_path / "sweep.csv").write_text(
        "name,status,targets.sigma,seed,test/error_px,test/pck@0.05\n"
        "a,finished,1.0,0,3,0.5\nb,finished,1.0,1,5,0.7\nc,finished,2.0,0,9,0.9\nd,failed,3.0,0,,\n"
    )
    table = ablation.read(tmp_path, ["test/pck@0.05", "test/error_px", "test/none"])
    assert table.fields == ("targets.sigma",)
    assert table.metrics == ("test/pck@0.05", "test/error_px")
    assert [row.settings for row in table.rows] == [("1.0",), ("2.0",)]
    assert [row.runs for row in table.rows] == [2, 1]
    assert table.rows[0].means == pytest.approx((0.6, 4.0))
    assert table.rows[0].deviations == pytest.approx((np.sqrt(0.02), np.sqrt(2)))
    assert table.unfinished == ("d",)
    (sentence,) = compare(UNET, ablations=[table]).text["ablation"]
    assert "test/pck@0.05 is best with targets.sigma=2.0: 0.9" in sentence
    assert "without scores: d" in sentence
    with pytest.raises(UserError, match="There is no"):
        ablation.read(tmp_path / "nothing", [])
    (tmp_path / "sweep.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no columns"):
        ablation.read(tmp_path, [])

"""Bootstrap, sign flips and corrections against independent references."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from heatmap.report import resampling
from tests.helpers import properties


def bootstrap_by_hand(values, groups, statistic, level, draws):
    """Draws groups with replacement and pools their values, one draw at a time."""
    rng = np.random.default_rng(12)
    members = [values[groups == g] for g in range(groups.max() + 1)]
    found = [
        statistic(
            np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        )
        for _ in range(draws)
    ]
    return np.quantile(found, [(1 - level) / 2, (1 + level) / 2])


@pytest.fixture
def grouped():
    """300 values in 40 groups that differ in size and mean."""
    rng = np.random.default_rng(3)
    groups = rng.integers(40, size=300)
    groups[:40] = np.arange(40)
    return rng.exponential(2, 300) + rng.normal(0, 1, 40)[groups], groups


def test_draws_keep_the_number_of_groups_and_do_not_depend_on_chunks():
    whole = np.concatenate(list(resampling.multiplicities(7, 50, 5, 7)))
    parts = np.concatenate(list(resampling.multiplicities(7, 50, 5, 2_000_000)))
    assert whole.shape == (50, 7)
    assert (whole.sum(axis=1) == 7).all()
    np.testing.assert_array_equal(whole, parts)
    mean = np.concatenate(list(resampling.multiplicities(7, 20_000, 5, 7))).mean(axis=0)
    np.testing.assert_allclose(mean, 1.0, atol=0.05)


def test_a_mean_and_its_interval_agree_with_pooling_by_hand(grouped):
    values, groups = grouped
    above = resampling.sums(values[:, None], groups)
    below = resampling.sums(np.ones((300, 1)), groups)
    value, low, high = (
        float(v[0]) for v in resampling.ratios(above, below, 0.9, seed=0, draws=4000)
    )
    assert value == pytest.approx(values.mean())
    expected = bootstrap_by_hand(values, groups, np.mean, 0.9, 4000)
    assert (low, high) == pytest.approx(expected, abs=0.1 * (high - low))


def test_an_interval_over_groups_is_wider_than_one_over_their_points():
    """Ten equal points of a picture are one observation, not ten."""
    right = np.repeat(np.random.default_rng(0).integers(2, size=50), 10).astype(float)[:, None]
    once = np.ones_like(right)

    def width(groups):
        above, below = resampling.sums(right, groups), resampling.sums(once, groups)
        _, low, high = resampling.shares(above, below, 0.95, seed=0)
        return high[0] - low[0]

    pictures, points = np.repeat(np.arange(50), 10), np.arange(500)
    assert width(pictures) == pytest.approx(np.sqrt(10) * width(points), rel=0.1)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.95, 1.0])
def test_a_quantile_and_its_interval_agree_with_numpy(grouped, q):
    values, groups = grouped
    found = resampling.quantile(values, groups, q, 0.9, seed=0, draws=3000)
    assert found.value == pytest.approx(np.quantile(values, q))
    by_hand = bootstrap_by_hand(values, groups, lambda v: np.quantile(v, q), 0.9, 3000)
    assert (found.low, found.high) == pytest.approx(by_hand, abs=0.15 * np.std(values))


@properties
@given(
    st.lists(st.floats(-10, 10), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.floats(0, 1),
)
def test_a_weighted_quantile_is_that_of_repeated_values(values, weights, q):
    ordered, times = np.sort(values), np.array(weights[: len(values)])
    times[0] = max(times[0], 1)
    found = resampling._weighted_quantile(ordered, times[None], q)[0]
    assert found == pytest.approx(np.quantile(np.repeat(ordered, times), q), abs=1e-9)


def test_a_quantile_survives_lost_predictions():
    values = np.array([1.0, 2.0, 3.0, np.inf, np.nan])
    found = resampling.quantile(values, np.arange(5), 0.5, 0.95, seed=0)
    assert found.value == 2.5
    assert found.high == np.inf


def test_a_share_without_exception_has_the_exact_bound_of_clopper_and_pearson():
    ones, groups = np.ones((30, 1)), 30
    value, low, high = resampling.shares(ones, ones, 0.95, seed=0)
    exact = scipy.stats.binomtest(groups, groups).proportion_ci(0.95, "exact")
    assert (value[0], low[0], high[0]) == pytest.approx((1.0, exact.low, 1.0))
    value, low, high = resampling.shares(0 * ones, ones, 0.95, seed=0)
    assert (value[0], low[0], high[0]) == pytest.approx((0.0, 0.0, 1 - exact.low))


def test_what_cannot_be_known_is_nan():
    one = np.array([[3.0]])
    value, low, high = resampling.ratios(one, one, 0.95, seed=0)
    assert value[0] == 1.0
    assert np.isnan([low[0], high[0]]).all()
    nothing = np.zeros((4, 1))
    assert np.isnan(resampling.ratios(nothing, nothing, 0.95, seed=0)).all()
    lost = np.array([[np.inf], [1.0]])
    value, low, _ = resampling.ratios(lost, np.ones((2, 1)), 0.95, seed=0)
    assert value[0] == np.inf
    assert np.isnan(low[0])


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 12, 80).astype(float)  # with ties
    b = a + rng.normal(0, 6, 80)
    found = resampling.rank_correlation(a, b, np.arange(80), 0.95, seed=0)
    assert found.value == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert found.low < found.value < found.high
    fisher = np.tanh(np.arctanh(found.value) + np.array([-1.96, 1.96]) / np.sqrt(77))
    assert (found.low, found.high) == pytest.approx(fisher, abs=0.08)


def test_rank_correlation_of_a_constant_is_unknown():
    found = resampling.rank_correlation(np.ones(9), np.arange(9.0), np.arange(9), 0.95, seed=0)
    assert np.isnan([found.value, found.low, found.high]).all()


def test_sign_flips_agree_with_scipy():
    """Its permutation test for paired samples flips signs as well."""
    differences = np.random.default_rng(1).normal(0.6, 1, 11)
    p, is_exact = resampling.sign_flip(differences, seed=0)
    expected = scipy.stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert is_exact
    assert p == pytest.approx(expected.pvalue)


def test_sign_flips_of_single_points_are_mcnemars_exact_test():
    differences = np.array([1.0] * 9 + [-1.0] * 3 + [0.0] * 50)
    p, _ = resampling.sign_flip(differences, seed=0)
    assert p == pytest.approx(scipy.stats.binomtest(3, 12, 0.5).pvalue)


def test_random_sign_flips_are_near_the_exact_answer_and_never_zero():
    differences = np.array([1.0] * 22 + [-1.0] * 10)
    p, is_exact = resampling.sign_flip(differences, seed=0)
    assert not is_exact
    assert p == pytest.approx(scipy.stats.binomtest(10, 32, 0.5).pvalue, abs=0.01)
    least, _ = resampling.sign_flip(np.ones(100), seed=0)
    assert least == pytest.approx(1e-4)


def test_nothing_differs_nothing_is_shown():
    assert resampling.sign_flip(np.zeros(20), seed=0) == (1.0, True)


@properties
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flips_know_no_side_and_no_order(differences):
    values = np.array(differences, dtype=float)
    p, _ = resampling.sign_flip(values, seed=0)
    assert p == resampling.sign_flip(-values, seed=0)[0]
    assert p == resampling.sign_flip(values[::-1], seed=0)[0]
    signs = np.array(list(itertools.product([-1, 1], repeat=len(values))))
    assert p == pytest.approx((abs(signs @ values) >= abs(values.sum())).mean())


def test_sign_flips_keep_their_level():
    """Under no difference, a p-value below 0.05 is as rare as it says."""
    rng = np.random.default_rng(0)
    found = [resampling.sign_flip(rng.normal(size=12), seed=0)[0] for _ in range(400)]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_holm_by_hand():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005])
    expected = [0.03, np.nan, 0.06, 0.06, 0.02]
    np.testing.assert_allclose(resampling.holm(p), expected)
    np.testing.assert_allclose(resampling.holm(np.array([0.9, 0.8])), [1.0, 1.0])


@properties
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_knows_no_order_and_lies_between_none_and_bonferroni(p, random):
    values = np.array(p)
    adjusted = resampling.holm(values)
    assert (adjusted >= values).all()
    assert (adjusted <= np.minimum(values * len(values), 1.0) + 1e-12).all()
    places = list(range(len(values)))
    random.shuffle(places)
    np.testing.assert_allclose(np.sort(resampling.holm(values[places])), np.sort(adjusted))

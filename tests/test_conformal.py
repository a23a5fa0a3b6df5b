"""Bounds on errors against the definition, analytic results and simulated groups."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap import conformal
from heatmap.errors import UserError

LEVELS = st.sampled_from([0.5, 0.8, 0.9, 0.95])


@st.composite
def samples(draw, least=19):
    """Scores and groups, enough of them for 95 %."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=least, max_size=30))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    scores = draw(
        st.lists(st.integers(0, 20), min_size=len(groups), max_size=len(groups)).map(np.array)
    )
    return scores.astype(float), groups


@pytest.mark.parametrize(
    ("level", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)]
)
def test_so_many_groups_are_needed(level, needed):
    assert conformal.groups_needed(level) == needed
    few = np.arange(needed - 1.0)
    if needed > 1:
        with pytest.raises(UserError, match=rf"{needed - 1} groups are too few .* takes {needed}"):
            conformal.bound(few, few, level)
    enough = np.arange(float(needed))
    assert conformal.bound(enough, enough, level) == needed - 1  # the largest


@pytest.mark.parametrize("level", [0.0, 1.0, -1, 95])
def test_a_level_is_a_probability(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        conformal.groups_needed(level)


def test_a_missing_score_is_refused():
    with pytest.raises(UserError, match="leave its example out"):
        conformal.bound(np.array([1.0, np.nan]), np.arange(2), 0.5)


@given(st.lists(st.floats(0, 1e6), min_size=19, max_size=60), LEVELS)
def test_groups_of_one_are_the_order_statistic_of_the_textbook(scores, level):
    place = math.ceil(Fraction(str(level)) * (len(scores) + 1))
    found = conformal.bound(np.array(scores), np.arange(len(scores)), level)
    assert found == sorted(scores)[place - 1]


@given(samples(), LEVELS)
def test_the_bound_is_the_least_that_weighs_enough(sample, level):
    scores, groups = sample
    found = conformal.bound(scores, groups, level)
    count = len(set(groups))

    def weight(limit):  # by the definition, in fractions
        parts = [
            Fraction(int((scores[groups == g] <= limit).sum()), int((groups == g).sum()))
            for g in set(groups)
        ]
        return sum(parts) / (count + 1)

    asked = Fraction(str(level))
    assert weight(found) >= asked
    lower = scores[scores < found]
    assert not len(lower) or weight(lower.max()) < asked


@given(samples(), st.randoms(use_true_random=False))
def test_neither_order_nor_names_matter_and_more_coverage_is_wider(sample, random):
    scores, groups = sample
    order = np.array(random.sample(range(len(scores)), len(scores)))
    names = np.array([f"tray {g}" for g in groups])
    bounds = [conformal.bound(scores, groups, level) for level in (0.5, 0.8, 0.9, 0.95)]
    assert bounds == sorted(bounds)
    assert conformal.bound(scores[order], names[order], 0.9) == bounds[2]


@given(samples(), st.integers(1, 5))
def test_a_group_told_twice_weighs_no_more(sample, times):
    scores, groups = sample
    first = groups == 0
    more = [np.concatenate([a, np.tile(a[first], times)]) for a in (scores, groups)]
    assert conformal.bound(*more, 0.9) == conformal.bound(scores, groups, 0.9)


@given(st.lists(st.integers(1, 5), min_size=20, max_size=26), LEVELS, st.integers(0, 2**32 - 1))
def test_coverage_of_a_group_left_out_lies_within_one_group_of_the_level(sizes, level, seed):
    """Exactly, averaged over which group is the one to come: no limit, no simulation.

    Offsets of groups and a mixture of scales put scores in clusters, singles and long tails.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    spread = rng.choice([1e-3, 1.0, 30.0], len(sizes))[groups]
    scores = np.abs(rng.normal(0, 3, len(sizes))[groups] + spread * rng.normal(size=len(groups)))
    held = []
    for g in range(len(sizes)):
        new = groups == g
        held.append((scores[new] <= conformal.bound(scores[~new], groups[~new], level)).mean())
    assert level - 1e-9 <= np.mean(held) < level + 1 / len(sizes) + 1e-9


def test_lost_predictions_make_a_bound_infinite_once_they_are_many():
    scores = np.r_[np.arange(18.0), np.inf, np.inf]
    assert conformal.bound(scores, np.arange(20), 0.8) == 16
    assert conformal.bound(scores, np.arange(20), 0.95) == np.inf


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("largest", [1, 6])
def test_new_groups_are_covered(level, largest):
    """Errors with an offset of each group; mean coverage over many calibration sets."""
    rng = np.random.default_rng(0)
    count, repeats, covered = 30, 400, []

    def draw(groups):
        index = np.repeat(np.arange(groups), rng.integers(1, largest + 1, groups))
        offsets = rng.normal(0, 1, groups)[index]
        return np.abs(offsets + rng.normal(0, 0.5, len(index))), index

    fresh = np.abs(rng.normal(0, np.hypot(1, 0.5), 20_000))  # one of each new group
    for _ in range(repeats):
        covered.append((fresh <= conformal.bound(*draw(count), level)).mean())
    error = np.std(covered) / np.sqrt(repeats)
    assert level - 3 * error <= np.mean(covered) <= level + 1 / (count + 1) + 3 * error

"""Names, pairs and their permutations."""

import dataclasses
import json

import numpy as np
import pytest

from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet, involution

NAMES = ("nose", "left_ear", "right_ear", "head", "tail")
POINTS = KeypointSet(
    NAMES,
    skeleton=((0, 3), (3, 4)),
    flip_pairs=((1, 2),),
    interchangeable_pairs=((1, 2), (4, 3)),
    torso=((0,), (3, 4)),
    oks_sigmas=(0.1, 0.2, 0.2, 0.3, 0.3),
    measurements=(("body", 3, 4), ("ears", 2, 1)),
    order_known=False,
)


def test_pairs_are_found_by_name_in_the_given_order():
    pairs = POINTS.pairs((("right_ear", "left_ear"), ["head", "tail"]), "data.flip_pairs")
    assert pairs == ((2, 1), (3, 4))
    assert POINTS.pairs((), "data.flip_pairs") == ()
    assert POINTS.pair_names("interchangeable_pairs") == [
        ("left_ear", "right_ear"),
        ("tail", "head"),
    ]


@pytest.mark.parametrize("name", ["median", "max", "unordered"])
def test_a_point_does_not_bear_the_name_of_a_score(name):
    with pytest.raises(UserError, match=f"called '{name}', as a score is"):
        KeypointSet(("nose", name))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((("left_ear", "right_aer"),), ["data.flip_pairs", "'right_aer'", "'right_ear'"]),
        ((("zzz", "nose"),), ["data.flip_pairs", "'zzz'", "choose from nose, left_ear"]),
        ((("nose",),), ["data.flip_pairs", "pairs of names"]),
        ((("nose", "head", "tail"),), ["data.flip_pairs", "pairs of names"]),
        (("ab",), ["data.flip_pairs", "pairs of names"]),  # two letters are not two names
    ],
)
def test_a_wrong_pair_is_refused_by_field_and_name(pairs, words):
    with pytest.raises(UserError) as caught:
        POINTS.pairs(pairs, "data.flip_pairs")
    assert all(word in str(caught.value) for word in words), caught.value


def test_index_finds_a_point():
    assert [POINTS.index(name, "data.torso") for name in NAMES] == list(range(POINTS.count))


def test_permutations_exchange_pairs_and_undo_themselves():
    np.testing.assert_array_equal(POINTS.flip_permutation(), [0, 2, 1, 3, 4])
    np.testing.assert_array_equal(
        involution(POINTS.count, POINTS.interchangeable_pairs), [0, 2, 1, 4, 3]
    )
    for permutation in (POINTS.flip_permutation(), involution(3, ())):
        np.testing.assert_array_equal(permutation[permutation], np.arange(len(permutation)))


@pytest.mark.parametrize("field", ["flip_pairs", "interchangeable_pairs"])
@pytest.mark.parametrize("pairs", [((0, 1), (1, 2)), ((0, 0),), ((0, 1), (1, 0))])
def test_a_point_in_two_pairs_is_refused(field, pairs):
    with pytest.raises(UserError, match=field):
        KeypointSet(NAMES, **{field: pairs})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("a", "b", "a", "c", "d")}, "same name"),
        ({"oks_sigmas": (0.1, 0.2)}, "2 OKS sigmas for 5 keypoints"),
        ({"measurements": (("a", 0, 1), ("a", 1, 2))}, "Two measurements have the same name: a, a"),
        ({"measurements": (("a/b", 0, 1),)}, "'a/b' needs a name without a slash"),
        ({"measurements": (("", 0, 1),)}, "'' needs a name"),
        ({"measurements": (("a", 1, 1),)}, r"two of the 5 points, .* got \(1, 1\)"),
        ({"measurements": (("a", 0, 5),)}, r"two of the 5 points, .* got \(0, 5\)"),
        ({"measurements": (("a", -1, 2),)}, r"two of the 5 points, .* got \(-1, 2\)"),
    ],
)
def test_a_contradiction_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(POINTS, **changes)


@pytest.mark.parametrize("points", [POINTS, KeypointSet(("only",))])
def test_json_round_trip(points):
    again = KeypointSet.from_json(json.loads(json.dumps(points.to_json())))
    assert again == points
    assert hash(again) == hash(points)  # tuples all the way down

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.common import get_config
from heatmap.config import from_mapping
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline.records import Records
from input_pipeline.splits import make_split

FAST = settings(max_examples=60, deadline=None)


def split_config(**changes):
    return dataclasses.replace(from_mapping(get_config().to_dict()).data.split, **changes)


def table(groups, instances=None, order=None, splits=None):
    """Makes records: picture i lies in `groups[i]` and holds `instances[i]` instances."""
    pictures = np.repeat(np.arange(len(groups)), instances or [1] * len(groups))
    count = len(pictures)
    order = np.arange(len(groups)) if order is None else np.asarray(order)
    splits = splits or [""] * len(groups)
    rng = np.random.default_rng(0)
    return Records(
        points=KeypointSet(names=("a", "b")),
        ids=np.array([f"picture{p}" for p in pictures], dtype=str),
        instances=np.array([int(np.sum(pictures[:i] == p)) for i, p in enumerate(pictures)], int),
        groups=np.array([str(groups[p]) for p in pictures], dtype=str),
        order=order[pictures].astype(np.int64),
        splits=np.array([splits[p] for p in pictures], dtype=str),
        keypoints=rng.uniform(0, 99, (count, 2, 2)),
        labelled=np.ones((count, 2), bool),
        boxes=np.zeros((count, 4)),
        areas=np.ones(count),
        sizes=np.full((count, 2), 100, np.int32),
        files=np.full(count, ""),
        orientations=np.ones(count, np.int32),
    )


def held(records, split, column="ids"):
    """Returns {split: set of values of a column}."""
    return {name: set(getattr(records, column)[rows]) for name, rows in split.rows.items()}


def assert_disjoint(sets):
    union = set().union(*sets.values())
    assert sum(len(values) for values in sets.values()) == len(union)
    return union


@st.composite
def grouped(draw, least_groups=3):
    """Records with at least so many groups, several instances, in any order."""
    group_count = draw(st.integers(least_groups, 8))
    more = draw(st.lists(st.integers(0, group_count - 1), max_size=20))
    groups = draw(st.permutations([*range(group_count), *more]))
    instances = draw(st.lists(st.integers(1, 3), min_size=len(groups), max_size=len(groups)))
    records = table(groups, instances)
    return records.take(np.array(draw(st.permutations(range(len(records))))))


@st.composite
def videos(draw):
    """Records of one or two videos of 12 to 30 pictures, whose time is not their place."""
    lengths = draw(st.lists(st.integers(12, 30), min_size=1, max_size=2))
    groups = [g for g, length in enumerate(lengths) for _ in range(length)]
    instances = draw(st.lists(st.integers(1, 2), min_size=len(groups), max_size=len(groups)))
    return table(groups, instances, order=draw(st.permutations(range(len(groups)))))


def timeline(records, split, group):
    """Returns the split's name of each picture of a group in time, '' if left out."""
    names = np.full(len(records), "", dtype="<U5")
    for name, rows in split.rows.items():
        names[rows] = name
    rows = np.flatnonzero(records.groups == group)
    by_time = {int(records.order[r]): str(names[r]) for r in rows}
    return [by_time[t] for t in sorted(by_time)]


# --- given ---


def test_given_takes_the_names_of_the_data():
    records = table([0] * 6, splits=["train", "test", "validation", "val", "valid", "train"])
    split = make_split(records, split_config())
    assert {n: list(r) for n, r in split.rows.items()} == {
        "train": [0, 5],
        "val": [2, 3, 4],
        "test": [1],
    }
    assert "Groups in more than one of the given splits: 1." in split.notes
    assert "2 train, 3 val, 1 test" in split.notes[0]


def test_given_needs_no_test():
    split = make_split(table([0, 1], splits=["train", "val"]), split_config())
    assert list(split.rows) == ["train", "val"]
    assert len(split.notes) == 1


def test_given_carves_val_from_train_by_group():
    groups = np.repeat(np.arange(18), 2)
    records = table(groups, splits=["train"] * 32 + ["test"] * 4)
    split = make_split(records, split_config(fractions=(0.6, 0.2, 0.2)))
    assert {n: len(r) for n, r in split.rows.items()} == {"train": 24, "val": 8, "test": 4}
    assert_disjoint(held(records, split, "groups"))
    assert "8 of 32 train" in split.notes[1]


@pytest.mark.parametrize(
    ("splits", "changes", "message"),
    [
        (["train", "", "val"], {}, r"'picture1' has the split ''.*method=hash"),
        (["train", "dev", "val"], {}, r"'picture1' has the split 'dev'"),
        (["val", "test", "val"], {}, r"no record of the train split"),
        (["train"] * 3, {"fractions": (0.9, 0.0, 0.1)}, r"The val split is empty"),
    ],
)
def test_given_refuses(splits, changes, message):
    with pytest.raises(UserError, match=message):
        make_split(table([0, 1, 2], splits=splits), split_config(**changes))


def test_given_refuses_a_divided_picture():
    records = table([0, 1], instances=[2, 1], splits=["train", "val"])
    records.splits[1] = "val"
    with pytest.raises(UserError, match=r"picture0.*'train' and 'val'"):
        make_split(records, split_config())


def test_given_cannot_carve_from_one_group():
    records = table([0, 0, 0], splits=["train"] * 3)
    with pytest.raises(UserError, match=r"Groups to divide: 1.*method=blocks"):
        make_split(records, split_config())


# --- cal ---


@FAST
@given(records=grouped(least_groups=5), salt=st.integers(0, 9))
def test_cal_takes_whole_groups_from_train_alone(records, salt):
    without = make_split(records, split_config(method="hash", salt=salt))
    train = len(without.rows["train"])
    share = 0.4 * train / len(records)  # of all records, so that train keeps some
    if len(np.unique(records.groups[without.rows["train"]])) < 2:
        return
    split = make_split(records, split_config(method="hash", salt=salt, cal=share))
    assert_disjoint(held(records, split, "groups"))
    both = np.sort(np.concatenate([split.rows["train"], split.rows["cal"]]))
    assert both.tolist() == sorted(without.rows["train"].tolist())
    for name in ("val", "test"):
        assert split.rows[name].tolist() == without.rows[name].tolist()


def test_cal_is_about_the_share_that_is_asked_for():
    records = table(np.repeat(np.arange(100), 2))
    split = make_split(records, split_config(method="hash", cal=0.2))
    assert {n: len(r) for n, r in split.rows.items()} == {
        "train": 120,
        "cal": 40,
        "val": 20,
        "test": 20,
    }
    assert "120 train, 40 cal, 20 val, 20 test" in split.notes[0]


def test_the_data_may_name_cal():
    records = table(range(4), splits=["train", "cal", "val", "calibration"])
    assert list(make_split(records, split_config()).rows["cal"]) == [1, 3]
    with pytest.raises(UserError, match="names a cal split"):
        make_split(records, split_config(cal=0.2))


def test_more_cal_than_there_is_to_train_is_refused():
    records = table(range(10), splits=["train"] * 2 + ["val"] * 8)
    with pytest.raises(UserError, match="more than the 2 that would train"):
        make_split(records, split_config(cal=0.3))


# --- hash ---


@FAST
@given(records=grouped(), salt=st.integers(0, 9))
def test_hash_keeps_groups_and_pictures_whole(records, salt):
    split = make_split(records, split_config(method="hash", salt=salt))
    assert list(split.rows) == ["train", "val", "test"]
    assert assert_disjoint(held(records, split, "groups")) == set(records.groups)
    assert assert_disjoint(held(records, split)) == set(records.ids)
    assert sum(len(rows) for rows in split.rows.values()) == len(records)


@FAST
@given(records=grouped(), data=st.data())
def test_hash_does_not_depend_on_the_order_of_the_files(records, data):
    config = split_config(method="hash")
    other = records.take(np.array(data.draw(st.permutations(range(len(records))))))
    first, second = make_split(records, config), make_split(other, config)
    assert first.sha256 == second.sha256
    for name, rows in first.rows.items():  # and training sees them in the same order
        np.testing.assert_array_equal(records.keypoints[rows], other.keypoints[second.rows[name]])


@FAST
@given(count=st.integers(20, 200), salt=st.integers(0, 99))
def test_hash_comes_near_the_fractions(count, salt):
    split = make_split(table(range(count)), split_config(method="hash", salt=salt))
    for name, fraction in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
        assert abs(len(split.rows[name]) - fraction * count) <= 1


def test_hash_cuts_where_it_comes_nearest():
    groups = np.repeat(np.arange(4), [5, 5, 5, 85])
    sizes = []
    for salt in range(40):
        rows = make_split(table(groups), split_config(method="hash", salt=salt)).rows
        sizes.append(tuple(len(rows[name]) for name in ("train", "val", "test")))
    # One for each place of the long group in the order of the hashes.
    assert set(sizes) == {(85, 5, 10), (90, 5, 5), (10, 85, 5), (10, 5, 85)}


def test_hash_salt_and_left_out_split():
    records = table(range(30))
    config = split_config(method="hash", fractions=(0.8, 0.2, 0.0))
    split = make_split(records, config)
    assert {n: len(r) for n, r in split.rows.items()} == {"train": 24, "val": 6}
    salted = make_split(records, dataclasses.replace(config, salt=1))
    assert held(records, split) != held(records, salted)


def test_hash_is_the_same_for_ever():
    split = make_split(table(range(10)), split_config(method="hash"))
    assert [list(split.rows[name]) for name in ("val", "test")] == [[5], [1]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hash_refuses_too_few_groups(count):
    records = table([i % max(count, 1) for i in range(9 if count else 0)])
    with pytest.raises(UserError, match=rf"Groups to divide: {count};.*data.split.method=blocks"):
        make_split(records, split_config(method="hash"))


@pytest.mark.parametrize("fractions", [(0.0, 0.5, 0.5), (0.5, 0.0, 0.5)])
def test_hash_needs_train_and_val(fractions):
    name = ("train", "val")[fractions.index(0.0)]
    with pytest.raises(UserError, match=f"The {name} split is empty"):
        make_split(table(range(9)), split_config(method="hash", fractions=fractions))


@pytest.mark.parametrize("method", ["hash", "blocks"])
def test_groups_must_hold_whole_pictures(method):
    records = table([0, 1, 2, 3], instances=[2, 1, 1, 1])
    records.groups[1] = "3"
    with pytest.raises(UserError, match=r"picture0.*groups '0' and '3'"):
        make_split(records, split_config(method=method))


# --- blocks ---


def runs(names):
    """Returns the (name, length) of stretches of equal names."""
    starts = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]]
    stops = [*starts[1:], len(names)]
    return [(names[a], b - a) for a, b in zip(starts, stops, strict=True)]


def test_blocks_hold_out_the_end():
    split = make_split(table([0] * 20), split_config(method="blocks", gap=2))
    names = timeline(table([0] * 20), split, "0")
    assert runs(names) == [("train", 12), ("", 2), ("val", 2), ("", 2), ("test", 2)]
    assert "4 records within 2 pictures" in split.notes[1]


def test_blocks_without_test():
    config = split_config(method="blocks", gap=1, fractions=(0.8, 0.2, 0.0))
    split = make_split(table([0] * 10), config)
    assert runs(timeline(table([0] * 10), split, "0")) == [("train", 7), ("", 1), ("val", 2)]
    assert list(split.rows) == ["train", "val"]


@pytest.mark.parametrize(
    ("fold", "expected"),
    [
        (0, [("test", 4), ("", 1), ("val", 2), ("", 1), ("train", 12)]),
        (1, [("train", 3), ("", 1), ("test", 4), ("", 1), ("val", 2), ("", 1), ("train", 8)]),
        (3, [("train", 11), ("", 1), ("test", 4), ("", 1), ("val", 2), ("", 1)]),
        (4, [("val", 2), ("", 1), ("train", 12), ("", 1), ("test", 4)]),
    ],
)
def test_folds(fold, expected):
    records = table([0] * 20)
    split = make_split(records, split_config(method="blocks", folds=5, fold=fold))
    assert runs(timeline(records, split, "0")) == expected


@FAST
@given(records=videos(), folds=st.integers(2, 5), gap=st.integers(0, 1))
def test_folds_partition_the_pictures(records, folds, gap):
    tested = []
    for fold in range(folds):
        config = split_config(method="blocks", folds=folds, fold=fold, gap=gap)
        split = make_split(records, config)
        tested += sorted(held(records, split)["test"])
        assert_blocks(records, split, gap)
    assert sorted(tested) == sorted(set(records.ids))


@FAST
@given(records=videos(), gap=st.integers(0, 3), test=st.sampled_from([0.0, 0.1, 0.25]))
def test_blocks_respect_the_gap(records, gap, test):
    config = split_config(method="blocks", gap=gap, fractions=(0.85 - test, 0.15, test))
    split = make_split(records, config)
    assert ("test" in split.rows) == (test > 0)
    assert_blocks(records, split, gap)


def assert_blocks(records, split, gap):
    assert_disjoint(held(records, split))
    for group in np.unique(records.groups):
        names = timeline(records, split, group)
        blocks = [name for name, _ in runs(names) if name in ("val", "test")]
        assert len(blocks) == len(set(blocks))  # each held-out block is in one piece
        for place, name in enumerate(names):
            near = set(names[max(place - gap, 0) : place + gap + 1])
            if name in ("val", "test"):
                assert near <= {name, ""}
            if name == "":
                assert near & {"val", "test"}  # nothing is left out for no reason
    # All instances of a picture are in one split.
    for name in set(records.ids):
        parts = [n for n, rows in split.rows.items() if name in records.ids[rows]]
        assert len(parts) <= 1
        if parts:
            part = records.ids[split.rows[parts[0]]]
            assert np.sum(part == name) == np.sum(records.ids == name)


@FAST
@given(records=videos(), data=st.data())
def test_blocks_do_not_depend_on_the_order_of_the_files(records, data):
    config = split_config(method="blocks", folds=3, fold=1)
    other = records.take(np.array(data.draw(st.permutations(range(len(records))))))
    assert make_split(records, config).sha256 == make_split(other, config).sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"gap": 5},
        {"folds": 12, "fold": 3},
        {"folds": 2, "fold": 1, "gap": 4},
        {"folds": 3, "fold": 1, "fractions": (0.4, 0.5, 0.1)},
        {"fractions": (0.0, 0.5, 0.5)},
    ],
)
def test_blocks_refuse_too_few_pictures(changes):
    with pytest.raises(UserError, match=r"Group '0' has 10 pictures, too few"):
        make_split(table([0] * 10), split_config(method="blocks", **changes))


def test_blocks_need_val():
    config = split_config(method="blocks", folds=5, fractions=(0.9, 0.0, 0.1))
    with pytest.raises(UserError, match="The val split is empty"):
        make_split(table([0] * 20), config)


# --- species_groups ---


def test_species_groups_holds_out_whole_groups_and_counts_what_is_left_out():
    groups = np.repeat(np.arange(8), 6)
    records = table(groups)
    species = np.where(groups < 6, "common", "rare")
    left_out = np.where(np.arange(len(groups)) % 2, "bent", "")
    records = dataclasses.replace(records, species=species, left_out=left_out)
    split = make_split(records, split_config(method="species_groups"))
    held_out = held(records, split, "groups")
    assert assert_disjoint(held_out) == set(records.groups)
    assert {"6", "7"} < held_out["val"]
    assert len(held_out["val"]) == 2 + 4  # 20 of the common ones, counting those not used
    assert {name: len(rows) for name, rows in split.rows.items()} == {"train": 6, "val": 18}


def test_species_groups_keeps_what_the_data_names():
    groups = np.repeat(np.arange(4), 6)
    splits = (["train"] + [""] * 5) * 2 + ["test"] * 6 + ["train"] * 6
    records = dataclasses.replace(
        table(groups, splits=splits), dataset=np.full(24, "biorepo"), species=np.full(24, "a")
    )
    split = make_split(records, split_config(method="species_groups"))
    names = np.full(24, "", "<U5")
    for name, rows in split.rows.items():
        names[rows] = name
    assert set(names[12:18]) == {"test"}
    assert set(names[18:]) == {"train"}
    (val,) = set(groups[names == "val"])  # one group of the two that are open, whole
    assert names[6 * val] == ""  # training must not show a group of val
    assert set(names[:12][groups[:12] != val]) == {"train"}
    assert any(note.startswith("1 records that the data marks") for note in split.notes)
    assert not any("not used" in note for note in split.notes)


def test_species_groups_refuses_a_strange_name():
    records = table([0, 1], splits=["dev", ""])
    with pytest.raises(UserError, match=r"'picture0' has the split 'dev'"):
        make_split(records, split_config(method="species_groups"))


@pytest.mark.parametrize("method", ["given", "hash", "blocks"])
def test_what_is_left_out_is_in_no_split(method):
    records = table(range(30), splits=["train"] * 20 + ["val"] * 5 + ["test"] * 5)
    left_out = np.where(np.arange(30) % 3 == 0, "bent", "")
    records = dataclasses.replace(records, left_out=left_out, dataset=np.full(30, "mine"))
    config = split_config(method=method)
    whole = make_split(dataclasses.replace(records, left_out=np.full(30, "")), config)
    split = make_split(records, config)
    for name, rows in split.rows.items():
        assert rows.tolist() == [row for row in whole.rows[name] if row % 3]
    assert any(note.startswith("mine: ") and "10 bent" in note for note in split.notes)


def test_content_hash_changes_with_the_scale():
    records = table(range(6), splits=["train", "val"] * 3)
    before = make_split(records, split_config()).sha256
    records.px_per_cm[2] = 100.0
    assert make_split(records, split_config()).sha256 != before


# --- content hash ---


@FAST
@given(records=grouped(), row=st.integers(0, 2), what=st.sampled_from(["x", "label", "group"]))
def test_content_hash_changes_with_the_labels(records, row, what):
    config = split_config(method="hash")
    before = make_split(records, config).sha256
    if what == "x":
        records.keypoints[row, 1, 0] += 1e-9
    elif what == "label":
        records.labelled[row, 0] = False
    else:
        same = records.ids == records.ids[row]
        records.groups[same] = "9"
    assert make_split(records, config).sha256 != before


def test_content_hash_changes_when_records_change_places():
    splits = ["train", "val", "train", "val"]
    one = make_split(table(range(4), splits=splits), split_config())
    other = make_split(table(range(4), splits=splits[::-1]), split_config())
    assert one.sha256 != other.sha256

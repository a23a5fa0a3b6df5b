"""Which records train, which calibrate, which choose the best checkpoint, which are scored once.

A picture with several instances stays in one split, whatever the method. `METHODS` holds the
methods; each names a split for every record, or '' for a record that is left out.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping

import numpy as np

from heatmap.config import SplitConfig
from heatmap.errors import UserError
from input_pipeline import species
from input_pipeline.records import Records

SPLITS = ("train", "cal", "val", "test")

_GIVEN = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_GIVEN |= {"cal": "cal", "calibration": "cal"}
_DTYPE = "<U5"  # of arrays of the names in SPLITS

Block = tuple[int, int]  # (first, one past the last) of the pictures of a group, in time


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows of the records by split.

    Attributes:
      rows: indices of records for 'train', 'val' and, if there are any, 'cal' and 'test'. They are
        sorted by (id, instance), so that training does not depend on the order of the label files.
      sha256: hash of what is in which split: names, ids, groups, keypoints and labels.
      notes: sentences for the log.
    """

    rows: dict[str, np.ndarray]
    sha256: str
    notes: tuple[str, ...]


def make_split(records: Records, config: SplitConfig) -> Split:
    """Divides records into train, val and test, and cal where calibration is asked for.

    Args:
      records: N instances.
      config: `data.split`.

    Returns:
      The split; every record is in at most one part.

    Raises:
      UserError: if a record has no valid split, a picture would be divided, there are too few
        groups or pictures, or a part would be empty.
    """
    names, notes = METHODS[config.method](records, config)
    if config.cal:
        names = _with_cal(records, names, config)
    # Only now, so that a record counts for its group whether or not it can be used.
    names = np.where(records.left_out == "", names, "")
    canonical = np.lexsort((records.instances, records.ids))
    rows = {name: canonical[names[canonical] == name] for name in SPLITS}
    for name in ("train", "val"):
        if not len(rows[name]):
            raise UserError(_nothing_for(name, config))
    rows = {name: part for name, part in rows.items() if len(part)}
    summary = f"Split of {len(records)} records by {config.method}: {_counts(names)}."
    notes = [summary, *_counts_by_dataset(records, names), *notes, *_warnings(records, config)]
    return Split(rows=rows, sha256=_content_hash(records, rows), notes=tuple(notes))


def _nothing_for(name: str, config: SplitConfig) -> str:
    """Phrases that a split is empty, and what decides that."""
    if config.method == "species_groups":
        why = {
            "train": "species with few group pictures go wholly to val, and here all do",
            "val": "the data marks every record for training",
        }
        return (
            f"The {name} split is empty with data.split.method=species_groups: {why[name]}; mix in "
            "another data set (--config.data.name=hawaii+biorepo, for example)."
        )
    return (
        f"The {name} split is empty with data.split.method={config.method} and "
        f"data.split.fractions={config.fractions}; train and val need at least one record."
    )


def _counts(names: np.ndarray) -> str:
    """Spells how many records are in each split, e.g. '8 train, 2 val'."""
    present = [name for name in SPLITS if name in names]
    return ", ".join(f"{np.sum(names == name)} {name}" for name in present) or "none"


def _counts_by_dataset(records: Records, names: np.ndarray) -> list[str]:
    """Says what each named data set gives, and why records of it are left out."""
    notes = []
    for dataset in np.unique(records.dataset[records.dataset != ""]):
        here = records.dataset == dataset
        reasons = Counter(str(reason) for reason in records.left_out[here] if reason)
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        left_out = f"; left out: {why}" if why else ""
        notes.append(f"{dataset}: {_counts(names[here])}{left_out}.")
    return notes


def _warnings(records: Records, config: SplitConfig) -> list[str]:
    """Says where a split may not be what the user thinks it is."""
    warnings = []
    if config.method in ("hash", "blocks") and (records.splits != "").any():
        warnings.append(
            "The data names splits, which are not used; data.split.method=given uses them."
        )
    if config.method == "hash" and _pictures_are_groups(records):
        warnings.append(
            "Every picture is a group of its own: if some are frames of one video or show one "
            "specimen, name what holds them together in data.split.group_by, or use "
            "data.split.method=blocks; else the scores are too good."
        )
    return warnings


def _pictures_are_groups(records: Records) -> bool:
    return len(np.unique(records.groups)) == len(np.unique(records.ids))


def _content_hash(records: Records, rows: Mapping[str, np.ndarray]) -> str:
    """Hashes what each split holds; `rows` must be in canonical order."""
    digest = hashlib.sha256()
    for name, part in rows.items():
        for row in part:
            keys = [name, str(records.ids[row]), int(records.instances[row])]
            digest.update(json.dumps([*keys, str(records.groups[row])]).encode() + b"\n")
            digest.update(records.keypoints[row].astype("<f8").tobytes())
            digest.update(records.labelled[row].astype("u1").tobytes())
            if np.isfinite(records.px_per_cm[row]):
                digest.update(records.px_per_cm[row].astype("<f8").tobytes())
    return digest.hexdigest()


def _given(records: Records, config: SplitConfig) -> tuple[np.ndarray, list[str]]:
    """Takes the splits that the data names; carves val from train where it names none."""
    names = _named(records, _GIVEN)
    _refuse_divided(records, names, "splits")
    train = np.flatnonzero(names == "train")
    if not len(train):
        raise UserError("The data names no record of the train split; label some as train.")
    notes = []
    if "val" not in names:
        share, whole = config.fractions[1], config.fractions[0] + config.fractions[1]
        if share > 0:
            shares = {"train": 1 - share / whole, "val": share / whole}
            names[train] = _cut(records.take(train), config.salt, shares)
            notes.append(
                f"The data names no val split: {np.sum(names == 'val')} of {len(train)} train "
                "records, chosen by the hash of their group, became val."
            )
    splits_of = Counter(group for group, _ in set(zip(records.groups, names, strict=True)))
    crossing = sum(count > 1 for count in splits_of.values())
    if crossing:  # allowed, because the data says so; but the scores may then be too good
        notes.append(f"Groups in more than one of the given splits: {crossing}.")
    return names, notes


def _named(records: Records, known: Mapping[str, str]) -> np.ndarray:
    """Returns [N] the splits that the data names, by our names for them.

    Raises:
      UserError: for the first name that is not known.
    """
    strange = np.flatnonzero(~np.isin(records.splits, list(known)))
    if len(strange):
        row = strange[0]
        method = "species_groups" if (records.species != "").any() else "hash"
        raise UserError(
            f"Record {str(records.ids[row])!r} has the split {str(records.splits[row])!r}; it must "
            f"be train, cal, val or test. Set --config.data.split.method={method} to let groups "
            "decide."
        )
    return np.array([known[str(name)] for name in records.splits], _DTYPE)


def _by_species(records: Records, config: SplitConfig) -> tuple[np.ndarray, list[str]]:
    """Lets a few whole groups of every species validate, unless the data names a split."""
    _refuse_divided(records, records.groups, "groups")
    names = _named(records, {**_GIVEN, "": ""})
    if not (records.species != "").any():
        raise UserError(
            "data.split.method=species_groups needs to know the species, and no record names one: "
            "take annotations that do, or another method, such as hash."
        )
    for dataset in np.unique(records.dataset):
        here = records.dataset == dataset
        quota = species.quota_of(str(dataset))
        names[here] = species.divide(
            records.groups[here], records.species[here], names[here], quota, config.salt
        )
    lost = int(np.sum(names == ""))
    if not lost:
        return names, []
    return names, [
        f"{lost} records that the data marks for training are left out: their group pictures "
        "validate."
    ]


def _by_hash(records: Records, config: SplitConfig) -> tuple[np.ndarray, list[str]]:
    """Divides whole groups by the hash of their name."""
    shares = dict(zip(("train", "val", "test"), config.fractions, strict=True))
    return _cut(records, config.salt, {n: share for n, share in shares.items() if share > 0}), []


def _with_cal(records: Records, names: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Takes whole groups from train, by the hash of their name, for nothing but calibration."""
    if "cal" in names:
        raise UserError(
            f"The data names a cal split, so data.split.cal={config.cal:g} has nothing to do; "
            "leave it at 0."
        )
    train = np.flatnonzero(names == "train")
    share = config.cal * len(records) / max(len(train), 1)
    if share >= 1:
        raise UserError(
            f"data.split.cal={config.cal:g} of {len(records)} records are more than the "
            f"{len(train)} that would train; lower it."
        )
    names = names.copy()
    names[train] = _cut(records.take(train), config.salt, {"train": 1 - share, "cal": share})
    return names


def _cut(records: Records, salt: int, shares: Mapping[str, float]) -> np.ndarray:
    """Puts groups in the order of their hash and cuts where the shares come out nearest.

    Every split gets at least one group.

    Args:
      records: N instances.
      salt: another number gives another order.
      shares: fraction of the records by split; they sum to 1.

    Returns:
      [N] names of splits.

    Raises:
      UserError: if there are fewer groups than splits, or a picture lies in two groups.
    """
    _refuse_divided(records, records.groups, "groups")
    groups, group_of, sizes = np.unique(records.groups, return_inverse=True, return_counts=True)
    if len(groups) < len(shares):
        raise UserError(
            f"Groups to divide: {len(groups)}; splits to fill: {len(shares)} "
            f"({', '.join(shares)}). A group is never divided, so for a single video set "
            "--config.data.split.method=blocks, or group by another field with "
            "--config.data.split.group_by."
        )
    keys = [hashlib.sha256(f"{salt}:{group}".encode()).digest() for group in groups]
    order = np.array(sorted(range(len(groups)), key=keys.__getitem__))
    so_far = np.cumsum(sizes[order])
    start, goal, name_of = 0, 0.0, np.empty(len(groups), _DTYPE)
    for place, (name, share) in enumerate(shares.items()):
        goal += share * len(records)
        later = len(shares) - 1 - place  # splits that still need a group each
        stop = len(groups)
        if later:
            ends = so_far[start : stop - later]
            stop = start + 1 + int(np.argmin(np.abs(ends - goal)))
        name_of[order[start:stop]] = name
        start = stop
    return name_of[group_of]


def _in_blocks(records: Records, config: SplitConfig) -> tuple[np.ndarray, list[str]]:
    """Holds out a contiguous stretch of time in every group, with a gap around it."""
    _refuse_divided(records, records.groups, "groups")
    groups = records.groups
    if _pictures_are_groups(records):
        # A reader that knows of no videos makes each picture a group; in time they are one.
        groups = np.full(len(records), "all pictures")
    names = np.full(len(records), "", _DTYPE)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        place, count = _in_time(records, rows)
        names[rows] = _block_names(count, config, str(group))[place]
    dropped = int(np.sum(names == ""))
    notes = []
    if dropped:
        notes.append(
            f"{dropped} records within {config.gap} pictures of a held-out block are left out."
        )
    return names, notes


def _in_time(records: Records, rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the pictures of these rows in time; returns ([rows] numbers, how many)."""
    ids, picture = np.unique(records.ids[rows], return_inverse=True)
    times = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(times, picture, records.order[rows])
    place = np.empty(len(ids), np.int64)
    place[np.lexsort((ids, times))] = np.arange(len(ids))
    return place[picture], len(ids)


def _block_names(count: int, config: SplitConfig, group: str) -> np.ndarray:
    """Names the split of each of `count` pictures of a group, in time; '' in a gap."""
    val_count = _near(count * config.fractions[1])
    if config.folds:
        test, val = _fold_blocks(count, val_count, config)
    else:
        test_start = count - _near(count * config.fractions[2])
        # Without a test block there is no gap to keep from it.
        val_stop = test_start - config.gap if test_start < count else count
        test, val = (test_start, count), (val_stop - val_count, val_stop)
    held_out = [block for block in (val, test) if block[1] > block[0]]
    names = np.full(count, "train", _DTYPE)
    for start, stop in held_out:
        names[max(start - config.gap, 0) : stop + config.gap] = ""
    if val[0] < 0 or count < config.folds or "train" not in names:
        what = f"{config.folds} folds" if config.folds else f"the fractions {config.fractions}"
        raise UserError(
            f"Group {group!r} has {count} pictures, too few for blocks by {what} with a gap of "
            f"{config.gap}; lower data.split.gap or data.split.folds, or divide whole groups with "
            "--config.data.split.method=hash."
        )
    names[slice(*val)] = "val"
    names[slice(*test)] = "test"
    return names


def _fold_blocks(count: int, val_count: int, config: SplitConfig) -> tuple[Block, Block]:
    """Returns the test and the val block of a fold, as far apart as the gap asks.

    Over the folds the test blocks are all pictures, each once. The val block comes right after
    the test block or, where there is no room, at the start of the video; a negative start says
    that there is no room there either.
    """
    start = config.fold * count // config.folds
    stop = (config.fold + 1) * count // config.folds
    after = stop + config.gap
    if after + val_count <= count:
        return (start, stop), (after, after + val_count)
    return (start, stop), (min(0, start - config.gap - val_count), val_count)


def _near(number: float) -> int:
    """Rounds to the nearest whole number, but a share that is asked for is never nothing."""
    return max(int(number + 0.5), 1) if number > 0 else 0


def _refuse_divided(records: Records, values: np.ndarray, field: str) -> None:
    """Raises a UserError if instances of one picture differ in a value [N] str."""
    order = np.lexsort((values, records.ids))
    ids, values = records.ids[order], values[order]
    divided = np.flatnonzero((ids[1:] == ids[:-1]) & (values[1:] != values[:-1]))
    if len(divided):
        row = divided[0]
        raise UserError(
            f"The instances of picture {str(ids[row])!r} have the {field} "
            f"{str(values[row])!r} and {str(values[row + 1])!r}; a picture is never divided, so "
            "give them one."
        )


METHODS = {
    "given": _given,
    "hash": _by_hash,
    "blocks": _in_blocks,
    "species_groups": _by_species,
}

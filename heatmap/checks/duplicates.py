"""Pictures that are there more than once: to the pixel, or so alike that they tell the same.

A picture that trains and is scored as well makes scores too good. Pictures are compared exactly by
a hash of their pixels, and roughly by what is left of them on 16×16 cells once the mean of all
pictures is taken away: frames of a camera that stands still share their background, which says
nothing about how alike they are, and neither does the white of drawings.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from heatmap.checks.finding import FAIL, OK, WARN, Finding

NAME = "duplicates"
_CELLS = 16
_ALIKE = 0.985  # correlation of two pictures
_LEAST_CONTRAST = 1.0  # grey levels: a picture that differs less from the mean tells nothing
_CHUNK = 1024
_SHOWN = 4


def fingerprint(picture: np.ndarray) -> tuple[str, np.ndarray]:
    """Describes a picture [H, W, C] uint8: a hash of its pixels, and 16×16 grey levels float32."""
    digest = hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    grey = Image.fromarray(picture.squeeze()).convert("L")
    cells = grey.resize((_CELLS, _CELLS), Image.Resampling.BOX)
    return digest.hexdigest(), np.asarray(cells, np.float32)


def check(hashes: np.ndarray, cells: np.ndarray, names: np.ndarray, ids: np.ndarray) -> Finding:
    """Compares all pictures.

    Args:
      hashes: [P] str, from `fingerprint`.
      cells: [P, 16, 16] grey levels, from there too.
      names: [P] str, the split of each.
      ids: [P] str, their names.
    """
    groups = _equal(hashes)
    across = [group for group in groups if len(set(names[group])) > 1]
    within = [group for group in groups if len(set(names[group])) == 1]
    near = _near(cells, names, hashes)
    data: dict[str, Any] = {
        "pictures": len(ids),
        "across_splits": [_spelt(group, names, ids) for group in across],
        "within_a_split": [_spelt(group, names, ids) for group in within],
        "near_across_splits": [_spelt(pair, names, ids) for pair in near],
    }
    held_out = int(np.sum(names != "train"))
    if across:
        message = (
            f"the same picture, to the pixel, is in several splits {_times(len(across))}, so that "
            "scores are too good: keep one of each, or hold out whole groups (data.split.group_by)"
        )
        return Finding(FAIL, NAME, message, _shown(data["across_splits"], " = "), data)
    told = []
    if near:
        told.append(
            f"{len(near)} of {held_out} held-out pictures look nearly the same as one of another "
            "split, so that scores may be too good: if they are frames of one video, hold out "
            "whole groups or raise data.split.gap"
        )
    if within:
        told.append(f"the same picture is in one split {_times(len(within))}")
    if told:
        rows = _shown(data["near_across_splits"], " ≈ ") + _shown(data["within_a_split"], " = ")
        return Finding(WARN, NAME, "; ".join(told), rows, data)
    message = f"{len(ids)} different pictures, none nearly the same as one of another split"
    return Finding(OK, NAME, message, data=data)


def standard(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes the mean of all pictures away, and brightness and contrast from each.

    Args:
      cells: [P, 16, 16] grey levels.

    Returns:
      [P, 256] of length one, and which [P] differ enough from the mean to tell anything.
    """
    flat = cells.reshape(len(cells), -1)
    flat = flat - flat.mean(axis=0)
    flat = flat - flat.mean(axis=1, keepdims=True)
    contrast = np.sqrt((flat**2).mean(axis=1))
    unit = flat / np.maximum(contrast, _LEAST_CONTRAST)[:, None] / _CELLS
    return unit, contrast >= _LEAST_CONTRAST


def _equal(hashes: Iterable[str]) -> list[np.ndarray]:
    """Groups the places of equal hashes, where there are two or more."""
    places = defaultdict(list)
    for place, value in enumerate(hashes):
        places[value].append(place)
    return [np.array(group) for group in places.values() if len(group) > 1]


def _near(cells: np.ndarray, names: np.ndarray, hashes: np.ndarray) -> list[np.ndarray]:
    """Finds pictures of different splits that are nearly, but not exactly, the same.

    Returns:
      The nearest twin of each held-out picture that has one, as pairs of places, the nearest first.
    """
    unit, telling = standard(cells)
    places, likeness = [], []
    held_out = np.flatnonzero((names != "train") & telling)
    for start in range(0, len(held_out), _CHUNK):
        rows = held_out[start : start + _CHUNK]
        alike = unit[rows] @ unit.T
        other = (names[None] != names[rows, None]) & telling[None]
        alike[~other | (hashes[None] == hashes[rows, None])] = -1.0
        best = alike.argmax(axis=1)
        places += [np.array([row, twin]) for row, twin in zip(rows, best, strict=True)]
        likeness += list(alike[np.arange(len(rows)), best])
    order = np.argsort(-np.array(likeness), kind="stable")
    return [places[i] for i in order if likeness[i] > _ALIKE]


def _spelt(group: np.ndarray, names: np.ndarray, ids: np.ndarray) -> list[str]:
    return [f"{names[place]}: {ids[place]}" for place in group]


def _times(count: int) -> str:
    return "(once)" if count == 1 else f"({count} times)"


def _shown(groups: list[list[str]], sign: str) -> tuple[str, ...]:
    rows = tuple(sign.join(group) for group in groups[:_SHOWN])
    left = len(groups) - _SHOWN
    return (*rows, f"and {left} more in doctor.json") if left > 0 else rows

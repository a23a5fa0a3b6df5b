"""Left and right: pairs that a mirror would not rename, and labels that look exchanged.

An exchanged pair is one that lies the other way round than in nearly all other instances. Which
way that is depends on who labelled: on the animal's own left and right, which turn with it, or on
those of the picture. Both are tried, and each pair is judged by the one that explains more labels.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from heatmap.checks import shapes
from heatmap.checks.finding import FAIL, OK, WARN, Finding, named, some
from heatmap.config import AugmentConfig
from heatmap.keypoints import KeypointSet, Pair

NAME = "left/right"
_LEAST = 10  # instances, to say what is usual
_FAR = 3.5  # standard deviations from what is usual
_NEARER = 0.5  # exchanged, a pair must come so much nearer to what is usual
_MANY = 0.1  # of all instances: then they may show another side of the animal
_OTHER_SIDE = {"left": "right", "Left": "Right", "LEFT": "RIGHT"}


@dataclasses.dataclass(frozen=True)
class Side:
    """How a pair lies in all instances.

    Attributes:
      pair: two indices.
      frame: in which it is judged: turned with the 'body', or as in the 'picture'.
      steadiness: the usual distance from left to right, in standard deviations of it.
      rows: the instances in which both are labelled.
      swapped: the instances in which they look exchanged.
    """

    pair: Pair
    frame: str
    steadiness: float
    rows: np.ndarray
    swapped: np.ndarray

    @property
    def told(self) -> bool:
        """Whether an exchanged pair would be noticed."""
        return len(self.rows) >= _LEAST and 2 * self.steadiness >= _FAR


def pairs_by_name(points: KeypointSet) -> tuple[Pair, ...]:
    """Finds pairs whose names differ in left and right only: left_ear and right_ear, ear_L."""
    places = {name: k for k, name in enumerate(points.names)}
    return tuple(
        (places[name], places[other])
        for name in points.names
        if (other := _opposite(name)) != name and other in places
    )


def _opposite(name: str) -> str:
    """Turns the left in a name into right; a name without one stays as it is."""
    for left, right in _OTHER_SIDE.items():
        if left in name:
            return name.replace(left, right)
    letter = {"l": "r", "L": "R"}
    return re.sub(r"(?<![^_])[lL](?![^_])", lambda found: letter[found.group()], name)


def not_renamed(points: KeypointSet) -> list[Pair]:
    """Finds pairs with a left and a right by their names that a mirror would not exchange."""
    exempt = {frozenset(pair) for pair in (*points.flip_pairs, *points.interchangeable_pairs)}
    return [pair for pair in pairs_by_name(points) if frozenset(pair) not in exempt]


def spelt(points: KeypointSet, pairs: Sequence[Pair]) -> str:
    """Writes pairs as the flag that would have a mirror exchange them."""
    named_pairs = [(points.names[a], points.names[b]) for a, b in pairs]
    inside = ", ".join(f"('{a}','{b}')" for a, b in named_pairs)
    return f'--config.data.flip_pairs="({inside},)"'


def mirrored(points: KeypointSet, augment: AugmentConfig) -> Finding:
    """Checks that a mirror renames every pair that has a left and a right by its name."""
    flips = bool(augment.horizontal_flip or augment.vertical_flip)
    lost = not_renamed(points)
    names = [f"{points.names[a]}/{points.names[b]}" for a, b in lost]
    data = {"flips": flips, "flip_pairs": points.pair_names("flip_pairs"), "not_renamed": names}
    if not flips:
        return Finding(OK, "mirror", "augmentation mirrors no picture", data=data)
    if lost:
        message = (
            f"augmentation mirrors pictures, and {some(names)} would keep their names, so that "
            f"left is taught as right: set {spelt(points, lost)}, or "
            "augment.horizontal_flip and vertical_flip to 0"
        )
        return Finding(FAIL, "mirror", message, data=data)
    renamed = some([f"{a}/{b}" for a, b in points.pair_names("flip_pairs")]) or "no point"
    return Finding(OK, "mirror", f"mirrored pictures rename {renamed}", data=data)


def look(records) -> list[Side]:
    """Says how each pair that has a left and a right lies.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
    """
    points = records.points
    pairs = points.flip_pairs or pairs_by_name(points)
    free = {frozenset(pair) for pair in points.interchangeable_pairs}
    pairs = tuple(pair for pair in pairs if frozenset(pair) not in free)
    if not pairs:
        return []
    return sides(shapes.complex_of(records.keypoints), records.labelled, points, pairs)


def exchanged(found: Sequence[Side]) -> np.ndarray:
    """Returns the rows in which a pair looks exchanged."""
    return np.unique(np.concatenate([np.empty(0, int), *(side.swapped for side in found)]))


def sides(z, known, points: KeypointSet, pairs: Sequence[Pair]) -> list[Side]:
    """Says how pairs lie, and where they look exchanged.

    An instance is turned by points that exchanging a pair does not move: those in no pair, and the
    middles of pairs.

    Args:
      z: [N, K] complex.
      known: [N, K] bool.
      points: what they mean.
      pairs: to be looked at.
    """
    middle, middle_known = _middles(z, known, {*pairs, *points.interchangeable_pairs})
    mean, middle, middle_known = shapes.mean_shape(middle, middle_known)
    a, _ = shapes.fit(middle, middle_known, mean)
    turn = a / np.abs(a)
    length = shapes.size(z, known)
    found = []
    for left, right in pairs:
        both = known[:, left] & known[:, right] & np.isfinite(length)
        apart = (z[:, right] - z[:, left]) / np.where(both, length, 1)
        frames = {"body": (apart * turn, both & np.isfinite(turn)), "picture": (apart, both)}
        judged = [_judge((left, right), name, *frame) for name, frame in frames.items()]
        found.append(max(judged, key=lambda s: (s.told, -len(s.swapped), s.steadiness)))
    return found


def _middles(z, known, pairs) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points in no pair and the middles of pairs, [N, M], and which are known."""
    paired = {k for pair in pairs for k in pair}
    lone = [k for k in range(z.shape[1]) if k not in paired]
    ends = np.array(sorted(pairs), int).reshape(-1, 2)
    middles = z[:, ends].mean(axis=2)
    columns = np.concatenate([z[:, lone], middles], axis=1)
    return columns, np.concatenate([known[:, lone], known[:, ends].all(axis=2)], axis=1)


def _judge(pair: Pair, frame: str, apart: np.ndarray, counted: np.ndarray) -> Side:
    """Measures how steady the way from left to right is, along the axis on which it mostly lies."""
    rows = np.flatnonzero(counted & (np.abs(apart) > 0))
    if not len(rows):
        return Side(pair, frame, 0.0, rows, rows)
    way = apart[rows]
    axis = np.exp(0.5j * np.angle(np.sum((way / np.abs(way)) ** 2)))  # of a line: no direction yet
    along = (way * axis.conj()).real
    along = along * (np.sign(np.median(along)) or 1.0)
    usual = np.median(along)
    scatter = max(shapes.spread(along), 1e-3 * usual, 1e-12)
    side = Side(pair, frame, float(usual / scatter), rows, rows[:0])
    if not side.told:
        return side
    far = (usual - along) / scatter > _FAR
    nearer = np.abs(-along - usual) < _NEARER * np.abs(along - usual)
    return dataclasses.replace(side, swapped=rows[far & (along < 0) & nearer])


def check(records, found: Sequence[Side]) -> Finding:
    """Reports instances whose left and right labels look exchanged.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
      found: from `look`.
    """
    if not found:
        return Finding(OK, NAME, "no pair has a left and a right that could be exchanged")
    names = {side.pair: "/".join(records.points.names[k] for k in side.pair) for side in found}
    data = {
        names[side.pair]: {
            "labelled": len(side.rows),
            "told": side.told,
            "frame": side.frame,
            "steadiness": round(side.steadiness, 2),
            "swapped": named(records, side.swapped),
        }
        for side in found
    }
    told = [side for side in found if side.told]
    untold = some([names[side.pair] for side in found if not side.told])
    unclear = f"; not to be told of {untold}, which lie either way, or are few" if untold else ""
    rows = exchanged(found)
    if not told:
        return Finding(OK, NAME, f"not to be told of {untold}, which lie either way", data=data)
    if not len(rows):
        checked = some([names[side.pair] for side in told])
        return Finding(OK, NAME, f"{checked} lie one way round everywhere{unclear}", data=data)
    which = some([names[side.pair] for side in told if len(side.swapped)])
    count = f"{len(rows)} of {len(records)} instances have {which} the other way round"
    shown = some(named(records, rows))
    if len(rows) > _MANY * len(records):
        message = (
            f"{count} ({shown}): if they do not show the other side of the animal, left and right "
            f"have been taken for one another{unclear}"
        )
        return Finding(WARN, NAME, message, data=data)
    message = f"{count}, as if left and right were exchanged: look at {shown}{unclear}"
    return Finding(FAIL, NAME, message, data=data)

"""What the points of a data set mean: names, skeleton, pairs, reference length."""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from heatmap.errors import UserError

Pair = tuple[int, int]
Measurement = tuple[str, int, int]  # a name and the two points between which it is taken

# Values of `visibility` [..., K]. Where a label is missing, `data.missing` decides which of the
# first two it becomes: nothing is known, or the point is known not to be in the picture.
UNKNOWN, ABSENT, LABELLED = 0, 1, 2

# 'error_px/median' is the median of all points, 'error_px/nose' the mean of one.
_NAMES_OF_SCORES = {"unordered", "ceiling", "median", "p95", "max", "rmse"}


@dataclasses.dataclass(frozen=True)
class KeypointSet:
    """The meaning of K points, in their order.

    Attributes:
      names: K distinct names.
      skeleton: pairs of indices to draw a line between.
      flip_pairs: left/right pairs that change places when a picture is mirrored.
      interchangeable_pairs: pairs whose order is arbitrary, such as the two ends of a line. The
        loss may take the cheaper order, and metrics are reported without regard to it as well.
      torso: two groups of indices; the distance between their means is the reference length of
        PCK-torso. Empty if the data set has none.
      oks_sigmas: K per-point constants of object keypoint similarity, or empty.
      measurements: named lengths, such as ("length", 2, 3): a name and the line's two points.
      order_known: False where no picture shows which of an interchangeable pair is which, so that
        any score that minds the order has a ceiling below one.
    """

    names: tuple[str, ...]
    skeleton: tuple[Pair, ...] = ()
    flip_pairs: tuple[Pair, ...] = ()
    interchangeable_pairs: tuple[Pair, ...] = ()
    torso: tuple[tuple[int, ...], ...] = ()
    oks_sigmas: tuple[float, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    order_known: bool = True

    def __post_init__(self):
        for field in ("flip_pairs", "interchangeable_pairs"):
            used = [i for pair in getattr(self, field) for i in pair]
            if len(used) != len(set(used)):
                raise UserError(f"{field} name a point twice: {self.pair_names(field)}.")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"Two keypoints have the same name: {', '.join(self.names)}.")
        for name in sorted(_NAMES_OF_SCORES.intersection(self.names)):
            raise UserError(f"A keypoint is called {name!r}, as a score is; give it another name.")
        if self.oks_sigmas and len(self.oks_sigmas) != len(self.names):
            raise UserError(
                f"There are {len(self.oks_sigmas)} OKS sigmas for {len(self.names)} keypoints; "
                "give one for each point."
            )
        self._check_measurements()

    def _check_measurements(self):
        lines = [name for name, *_ in self.measurements]
        if len(set(lines)) != len(lines):
            raise UserError(f"Two measurements have the same name: {', '.join(lines)}.")
        for name, *ends in self.measurements:
            if not name or "/" in name:  # scores bear its name, and a slash divides theirs
                raise UserError(f"The measurement {name!r} needs a name without a slash.")
            if len(set(ends)) != 2 or not all(0 <= end < len(self.names) for end in ends):
                raise UserError(
                    f"The measurement {name!r} must lie between two of the {len(self.names)} "
                    f"points, counted from 0; got {tuple(ends)}."
                )

    @property
    def count(self) -> int:
        """The number of points, K."""
        return len(self.names)

    def pair_names(self, field: str) -> list[tuple[str, str]]:
        """Spells a field of pairs by name, for messages and records."""
        return [(self.names[a], self.names[b]) for a, b in getattr(self, field)]

    def flip_permutation(self) -> np.ndarray:
        """Returns [K] so that `points[permutation]` renames left and right."""
        return involution(self.count, self.flip_pairs)

    def index(self, name: str, field: str) -> int:
        """Finds a point by name.

        Raises:
          UserError: naming `field` and the nearest name, if there is no such point.
        """
        if name not in self.names:
            near = difflib.get_close_matches(str(name), self.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(self.names)}."
            raise UserError(f"{field} names the unknown keypoint {name!r}: {hint}")
        return self.names.index(name)

    def pairs(self, names: Sequence[Sequence[str]], field: str) -> tuple[Pair, ...]:
        """Turns pairs of names into pairs of indices.

        Raises:
          UserError: naming `field`, if a pair is not two known names.
        """
        for pair in names:
            if isinstance(pair, str) or len(pair) != 2:
                raise UserError(
                    f"{field} must be pairs of names such as (('left_ear', 'right_ear'),); "
                    f"got {pair!r}."
                )
        return tuple((self.index(a, field), self.index(b, field)) for a, b in names)

    def to_json(self) -> dict:
        """Returns a dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "KeypointSet":
        """Inverts `to_json`."""

        def freeze(value):
            return tuple(freeze(v) for v in value) if isinstance(value, list | tuple) else value

        return cls(**{k: freeze(v) for k, v in values.items()})


def involution(count: int, pairs: Sequence[Pair]) -> np.ndarray:
    """Returns [count], the permutation that exchanges the members of each pair."""
    permutation = np.arange(count)
    for a, b in pairs:
        permutation[a], permutation[b] = b, a
    return permutation

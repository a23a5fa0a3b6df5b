"""What a command line says of two points: lengths to measure, and the ends of a scale bar."""

import argparse
import dataclasses
from collections.abc import Sequence

from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet, Measurement


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --measure, whose values `with_measurements` reads."""
    parser.add_argument(
        "--measure",
        action="append",
        default=[],
        metavar="NAME=A-B",
        help="a length between two points, by name or number from 0; may be given again",
    )


def with_measurements(points: KeypointSet, texts: Sequence[str]) -> KeypointSet:
    """Adds the lengths that the command line names: NAME=POINT-POINT, by name or number from 0.

    Raises:
      UserError: for another form, an unknown point, or a name that the data set gives to another
        length.
    """
    of_data = {name: {a, b} for name, a, b in points.measurements}
    added: list[Measurement] = []
    for text in texts:
        name, _, ends = text.partition("=")
        a, b = two_points(points, ends, f"--measure {text}")
        if of_data.get(name, {a, b}) != {a, b}:
            raise UserError(
                f"--measure {text} gives another meaning to {name}, which the data set measures "
                "between other points; choose another name."
            )
        added.append((name, a, b))
    kept = [line for line in points.measurements if line[0] not in {name for name, *_ in added}]
    return dataclasses.replace(points, measurements=(*kept, *added))


def two_points(points: KeypointSet, text: str, flag: str) -> tuple[int, int]:
    """Reads POINT-POINT, by name or number from 0; a name may hold a dash itself.

    Args:
      points: that there are.
      text: to read.
      flag: that it was given with, for messages.

    Raises:
      UserError: unless it names two different points.
    """
    known = {
        **{str(k): k for k in range(points.count)},
        **{n: k for k, n in enumerate(points.names)},
    }
    parts = text.split("-")
    for cut in range(1, len(parts)):
        a, b = "-".join(parts[:cut]), "-".join(parts[cut:])
        if a in known and b in known and known[a] != known[b]:
            return known[a], known[b]
    raise UserError(
        f"{flag} must name two different points, such as length={points.names[0]}-"
        f"{points.names[-1]}; the points are {', '.join(points.names)}, or their numbers from 0."
    )

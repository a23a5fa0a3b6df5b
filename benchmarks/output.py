"""What every benchmark leaves: a table in Markdown, the numbers as JSON, and a figure."""

import argparse
import math
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from heatmap import command_line, workdir
from heatmap.report import reproduction

Row = Mapping[str, Any]
# Libraries that contestants are made of.
_OF_CONTESTANTS = ("torch", "transformers", "grain", "tensorflow")


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """Returns the command line of `python -m benchmarks.NAME`, with --out."""
    flags = command_line.parser(f"python -m benchmarks.{name}", about)
    flags.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("runs/benchmarks"),
        help="folder of NAME.json and NAME.png; default: runs/benchmarks",
    )
    return flags


def count(text: str) -> int:
    """Reads a flag that says how many: rounds, steps, pictures.

    Raises:
      argparse.ArgumentTypeError: if that is not a whole number from 1.
    """
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def publish(
    out: pathlib.Path,
    name: str,
    rows: Sequence[Row],
    draw: Callable[[Any], None],
    benchmark: str = "",
    contestants: Sequence[Row] = (),
) -> None:
    """Prints the rows as a table and writes NAME.json and NAME.png.

    Args:
      out: the folder.
      name: of the benchmark.
      rows: with the same columns; what is a list, such as the seconds of each turn, is in the
        JSON alone.
      draw: draws the rows into Matplotlib's axes.
      benchmark: that measured them, if it has another name.
      contestants: what each said of itself, for the JSON.
    """
    print("\n".join(table(rows)), flush=True)
    words = [f"python -m benchmarks.{benchmark or name}", *map(shlex.quote, sys.argv[1:])]
    numbers = {
        "command": " ".join(words),
        "environment": dict(reproduction.environment(*_OF_CONTESTANTS)),
        "contestants": [dict(contestant) for contestant in contestants],
        "rows": [dict(row) for row in rows],
    }
    workdir.write_json(out / f"{name}.json", numbers)
    _save_figure(out / f"{name}.png", draw)
    print(f"wrote {out / f'{name}.json'} and {out / f'{name}.png'}", file=sys.stderr)


def table(rows: Sequence[Row]) -> list[str]:
    """Lays out rows with the same columns as Markdown, numbers to three digits, without lists."""
    columns = [column for column, value in rows[0].items() if not isinstance(value, list)]
    lines = [" | ".join(columns), "|".join("---" for _ in columns)]
    lines += [" | ".join(cell(row[column]) for column in columns) for row in rows]
    return [f"| {lines[0]} |", f"|{lines[1]}|", *(f"| {line} |" for line in lines[2:])]


def cell(value: Any) -> str:
    """Spells a value for a table: floating-point numbers to three digits, others as they are."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "–"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(digits, 6)}f}"


def _save_figure(path: pathlib.Path, draw: Callable[[Any], None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(figure.subplots())
    with workdir.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

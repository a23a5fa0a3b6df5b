"""Counts what was read of a data set, what was left out and why, and how the rest is divided.

python -m input_pipeline.check --name=hawaii --root=DIR --split=species_groups
python -m input_pipeline.check --config=configs/folder.py --root=DIR

A config file gives what the other flags do not; nothing is trained or written.
"""

import argparse
import dataclasses
import pathlib
import runpy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

import input_pipeline
from heatmap import config as config_lib
from heatmap.config import DataConfig
from heatmap.errors import UserError, guard
from input_pipeline.records import Records, mix
from input_pipeline.splits import METHODS


def table(parts: Mapping[str, Records]) -> str:
    """Lays out what became of every record.

    Args:
      parts: the records of each data set.

    Returns:
      Lines: for each data set how many records its files list, how many are kept and left out, the
      reasons with their counts, and for those kept how many have each line, or point, and a scale.
    """
    width = max(len("data set"), *map(len, parts))
    lines = [f"{'data set':<{width}}  {'read':>7}  {'kept':>7}  {'left out':>8}"]
    for name, records in parts.items():
        kept = records.take(records.left_out == "")
        reasons = Counter(str(reason) for reason in records.left_out if reason)
        if records.skipped:
            reasons["unreadable picture (data.on_error='skip')"] = len(records.skipped)
        read = len(records) + len(records.skipped)
        lines.append(f"{name:<{width}}  {read:7}  {len(kept):7}  {read - len(kept):8}")
        for sign, counts in (("-", dict(reasons.most_common())), ("+", _labels(kept))):
            lines += [f"{'':<{width}}  {count:7}  {sign} {what}" for what, count in counts.items()]
    return "\n".join(lines)


def _labels(records: Records) -> dict[str, int]:
    """Counts what the records can teach and what they can be measured by."""
    points, labelled = records.points, records.labelled
    counts = {
        f"with {name}": int(np.sum(labelled[:, a] & labelled[:, b]))
        for name, a, b in points.measurements
    }
    if not points.measurements:
        counts = {f"with {name}": int(labelled[:, k].sum()) for k, name in enumerate(points.names)}
    scaled = int(np.isfinite(records.px_per_cm).sum())
    return {**counts, "with a scale (px_per_cm)": scaled} if points.measurements else counts


def check(config: DataConfig) -> None:
    """Reads, divides and prints.

    Raises:
      UserError: for anything wrong with the data; a division that fails comes after the table.
    """
    parts = input_pipeline.read_parts(config)
    print(table(parts), flush=True)
    records = mix(parts) if len(parts) > 1 else parts[config.name]
    for sentence in (*records.skipped, *records.notes):
        print(sentence, flush=True)
    print(*input_pipeline.make_split(records, config.split).notes, sep="\n")


def load_config(name: str) -> DataConfig:
    """Runs a config file, as `main.py --config` does.

    Args:
      name: the file; what follows a colon is handed to its `get_config`.

    Raises:
      UserError: if it cannot be run or is no config.
    """
    path, colon, argument = name.partition(":")
    try:
        get_config = runpy.run_path(path)["get_config"]
        values: Any = (get_config(argument) if colon else get_config()).to_dict()
    except Exception as error:  # whatever a config file may do wrong
        raise UserError(
            f"The config {name} cannot be loaded ({type(error).__name__}: {error}); name one of "
            f"{', '.join(sorted(map(str, pathlib.Path('configs').glob('[!_]*.py')))) or 'yours'}."
        ) from error
    return config_lib.from_mapping(values).data


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs `check`."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/common.py", help="a config file")
    parser.add_argument("--name", help="data.name, such as hawaii+beetlepalooza+biorepo")
    parser.add_argument("--root", help="data.root, the data's folder")
    parser.add_argument("--not-two-points", choices=("drop", "mask"), help="data.not_two_points")
    parser.add_argument("--split", choices=METHODS, help="data.split.method")
    options = parser.parse_args(arguments)
    config = load_config(options.config)
    given = {"name": options.name, "root": options.root, "not_two_points": options.not_two_points}
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})
    if options.split:
        split = dataclasses.replace(config.split, method=options.split)
        config = dataclasses.replace(config, split=split)
    check(config)


if __name__ == "__main__":
    guard(main)

"""Counts what was read of a data set, what was left out and why, and how the rest is divided.

python -m input_pipeline.check --config=configs/beetles.py --config.data.root=DIR
python -m input_pipeline.check --config=configs/folder.py --config.data.root=DIR

The flags are those of main.py; nothing is trained or written.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

import input_pipeline
from heatmap import command_line
from heatmap.config import DataConfig
from heatmap.errors import guard
from input_pipeline.records import Records, mix


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


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs `check`."""
    parser = command_line.parser("python -m input_pipeline.check", __doc__)
    _, config = command_line.read(parser, arguments, default="configs/common.py")
    check(config.data)


if __name__ == "__main__":
    guard(main)

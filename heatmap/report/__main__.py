"""Compares finished runs on the same data and writes a report.

python -m heatmap.report RUN_A RUN_B --out=report.html [--split=test] [--sweep=runs/sigmas]
"""

import argparse
import pathlib
from collections.abc import Callable

from heatmap import compilation
from heatmap.errors import UserError, guard
from heatmap.report import ablation, analysis, examples, markdown, methods, page
from heatmap.report.findings import UNORDERED, Comparison, Gallery

Writer = Callable[[pathlib.Path, Comparison, Gallery], None]

# What writes a report, by the suffix of its file. A folder gets one file of each.
WRITERS: dict[str, Writer] = {".md": markdown.write, ".html": page.write}
_STEM = "report"


def sweep_metrics(split: str, order: str) -> tuple[str, ...]:
    """Names the scores that a table of a sweep shows."""
    unordered = "/unordered" if order == UNORDERED else ""
    pck = [f"{split}/pck@{t:g}{unordered}" for t in analysis.QUOTED]
    return (*pck, f"{split}/error_px{unordered}/median", f"{split}/error_px{unordered}")


def report(
    folders: list[pathlib.Path],
    split: str,
    sweeps: list[pathlib.Path],
    root: str = "",
    threshold: float = analysis.RIGHT,
    pictures: bool = True,
) -> tuple[Comparison, Gallery]:
    """Compares runs and collects the pictures of a report.

    Args:
      folders: workdirs of finished runs on the same data.
      split: on which to compare them.
      sweeps: folders with a `sweep.csv`, for tables of ablations.
      root: where the data are now, if they have moved.
      threshold: within which a single point is right.
      pictures: whether to read the data and run the models; without, there are neither pictures
        nor an error budget.

    Raises:
      UserError: if a run, the data or a sweep cannot be read, or the runs do not compare.
    """
    runs = methods.open_methods(folders, split)
    order = analysis.order_of_points(runs[0])
    tables = [ablation.read(path, sweep_metrics(split, order)) for path in sweeps]
    if not pictures:
        comparison = analysis.compare(runs, split, (), tables, threshold=threshold)
        return comparison, Gallery((), {}, ())
    sources = examples.open_sources(runs, root)
    budgets = examples.budgets(runs, sources, split, order, threshold)
    comparison = analysis.compare(runs, split, budgets, tables, threshold=threshold)
    return comparison, examples.gallery(comparison, sources)


def outputs(out: pathlib.Path) -> dict[pathlib.Path, Writer]:
    """Says which files to write, and how.

    Raises:
      UserError: for a suffix that no writer knows.
    """
    if out.suffix in WRITERS:
        return {out: WRITERS[out.suffix]}
    if out.suffix and not out.is_dir():
        raise UserError(
            f"--out={out} ends in {out.suffix!r}: give a file that ends in {', '.join(WRITERS)}, "
            "or a folder."
        )
    return {out / f"{_STEM}{suffix}": write for suffix, write in WRITERS.items()}


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m heatmap.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="workdirs of finished runs")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a file or a folder")
    parser.add_argument("--split", default="test", help="train, val or test")
    parser.add_argument(
        "--sweep",
        type=pathlib.Path,
        action="append",
        default=[],
        help="a folder with sweep.csv, for a table of ablations; may be given again",
    )
    parser.add_argument("--root", default="", help="where the data are now, if they have moved")
    parser.add_argument(
        "--threshold", type=float, default=analysis.RIGHT, help="within which a point is right"
    )
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="use saved files only: neither data nor models, no error budget",
    )
    options = parser.parse_args(arguments)
    if not 0 < options.threshold <= 1:
        raise UserError(f"--threshold={options.threshold:g} must lie in (0, 1].")
    files = outputs(options.out)
    if page.write in files.values():
        page.libraries()  # before minutes of work
    compilation.keep()
    comparison, gallery = report(
        options.runs,
        options.split,
        options.sweep,
        options.root,
        options.threshold,
        not options.no_pictures,
    )
    for path, write in files.items():
        write(path, comparison, gallery)
        print(f"wrote {path}")
    for sentence in comparison.text["summary"]:
        print(sentence)


if __name__ == "__main__":
    guard(main)

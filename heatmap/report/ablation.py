"""What a sweep shows: scores by what was varied, averaged over seeds."""

import csv
import math
import pathlib
import statistics
from collections.abc import Sequence

from heatmap.errors import UserError
from heatmap.report.findings import Ablation, AblationRow

SWEEP = "sweep.csv"
_SEED = "seed"
_SPLITS = ("train/", "val/", "test/")


def read(path: pathlib.Path, metrics: Sequence[str]) -> Ablation:
    """Reads the table of a sweep.

    Args:
      path: a sweep's folder, or its `sweep.csv`.
      metrics: names of scores to show; those that no run has are left out.

    Returns:
      A row for each setting that differs by more than the seed.

    Raises:
      UserError: if there is no such file, or it is no table of a sweep.
    """
    file = path / SWEEP if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"There is no {file}; give the --out of a launcher as --sweep.")
    with file.open(newline="") as lines:
        reader = csv.DictReader(lines)
        names, runs = list(reader.fieldnames or ()), list(reader)
    if not {"name", "status"} <= set(names):
        raise UserError(f"{file} has no columns 'name' and 'status'; is it the table of a sweep?")
    fields = [n for n in names if n not in ("name", "status", _SEED) and not n.startswith(_SPLITS)]
    finished = [run for run in runs if any(_number(run, metric) is not None for metric in metrics)]
    shown = [m for m in metrics if any(_number(run, m) is not None for run in finished)]
    together: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run in finished:
        together.setdefault(tuple(run[field] or "" for field in fields), []).append(run)
    rows = []
    for settings, same in together.items():
        columns = [[v for v in (_number(run, m) for run in same) if v is not None] for m in shown]
        rows.append(
            AblationRow(
                settings=settings,
                runs=len(same),
                means=tuple(statistics.fmean(c) if c else math.nan for c in columns),
                deviations=tuple(statistics.stdev(c) if len(c) > 1 else math.nan for c in columns),
            )
        )
    return Ablation(
        name=file.absolute().parent.name,
        fields=tuple(fields),
        metrics=tuple(shown),
        rows=tuple(rows),
        unfinished=tuple(run["name"] for run in runs if run not in finished),
    )


def _number(run: dict[str, str], metric: str) -> float | None:
    try:
        return float(run.get(metric) or "")
    except ValueError:
        return None

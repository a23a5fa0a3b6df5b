"""Calibrates a trained run on its cal split, so that it can say how far off its points may be.

python -m heatmap.calibration --workdir=runs/mine [--flip] [--levels 0.8 0.9 0.95]
python -m heatmap.calibration --workdir=runs/mine --measure length=2-3

Hold groups out when you train (--config.data.split.cal=0.2): specimens, trays or videos that
nothing else has touched. 80, 90 and 95 % take at least 4, 9 and 19 of them. The result lies in the
workdir, where heatmap.predict finds it: intervals of the points, of the lengths that the data set
measures and of those named here. With it are told how often intervals and probabilities were right
on the test split, also as a plot, figures/calibration.png. A calibration replaces the last one of
the same models.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from heatmap import command_line, compilation, conformal, evaluate, workdir
from heatmap.checkpoint import LATEST, Checkpoints
from heatmap.config import Config
from heatmap.errors import UserError, guard
from heatmap.inference import fitting, labelled, lengths, uncertainty
from heatmap.inference import predictor as predictor_lib
from heatmap.inference.labelled import Errors
from heatmap.inference.uncertainty import Calibration
from heatmap.report import reliability

_WITHIN = 0.05


def table(calibration: Calibration) -> str:
    """Lays out by what each yardstick has to be multiplied."""
    of_lines = {name: line.factors for name, line in calibration.lines.items()}
    rows = {**calibration.points, **of_lines}
    head = "times its spread"
    width = max(map(len, [head, *rows]))
    lines = [
        f"calibrated with {calibration.examples} instances of {calibration.groups} groups",
        f"{head:<{width}}" + "".join(f"{level:9.0%}" for level in calibration.levels),
    ]
    for name, row in rows.items():
        cells = ("-" if np.isnan(factor) else f"{factor:.3g}" for factor in row)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in cells))
    if np.isnan(list(rows.values())).any():
        needed = ", ".join(f"{conformal.groups_needed(p)} at {p:.0%}" for p in calibration.levels)
        lines.append(f"- where too few groups show it; it takes {needed}")
    return "\n".join(lines)


def are_crops(ids: np.ndarray, crop: str) -> bool:
    """Says whether instances [N] are read from their boxes, as `augment.source_box` decides."""
    return crop == "box" or (crop == "auto" and len(np.unique(ids)) < len(ids))


def check(folders: Sequence[pathlib.Path], sha256: str) -> None:
    """Refuses data that are divided otherwise than when one of the models was trained.

    Raises:
      UserError: naming the workdir.
    """
    for folder in folders:
        evaluate.check_split(folder, Checkpoints(folder, LATEST).meta(), sha256)


def cal_rows(
    folder: pathlib.Path, groups: np.ndarray, rows: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Returns the rows of the cal split, which nothing else may have touched.

    Args:
      folder: the workdir, for messages.
      groups: [N] str, of all records.
      rows: by split.

    Raises:
      UserError: if there are none, or one of their groups is in another split as well.
    """
    if "cal" not in rows:
        raise UserError(
            f"{folder} was trained without a cal split, and what has trained or chosen a model "
            "cannot calibrate it: train with --config.data.split.cal=0.2, for example."
        )
    for name, others in rows.items():
        shared = np.intersect1d(groups[rows["cal"]], groups[others])
        if name != "cal" and len(shared):
            raise UserError(
                f"The group {shared[0]} is in the cal split and in {name}, so that cal is not new "
                "to the model: divide whole groups, with data.split.method=hash."
            )
    return rows["cal"]


def missing(errors: Errors, calibration: Calibration, config: Config) -> list[str]:
    """Says which probabilities a calibration cannot state, and why.

    Args:
      errors: of the cal split.
      calibration: that came of them.
      config: of the run.
    """
    told = []
    if calibration.confidence is None:
        told.append("no confidence: no instance has two labelled points, whose extent it refers to")
    if calibration.visibility is None:
        if config.data.missing != "absent":
            why = "the labels do not tell absent points (data.missing='absent' does)"
        elif np.isnan(errors.found.score).all():
            why = "the model gives coordinates without a score to tell it from"
        else:
            why = "every point of the cal split is in its picture"
        told.append(f"no visibility: {why}")
    return told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_models(parser)
    lengths.add_flag(parser)
    parser.add_argument("--levels", type=float, nargs="+", default=list(uncertainty.LEVELS))
    parser.add_argument(
        "--within", type=float, default=_WITHIN, help="right is: within this share of the extent"
    )
    parser.add_argument("--root", default="", help="where the data are now, if they have moved")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, calibrates, and tells how right that is on the test split."""
    options = _parser().parse_args(arguments)
    levels = sorted(set(options.levels))
    if not all(0 < level < 1 for level in levels) or not options.within > 0:
        raise UserError("--levels lie between 0 and 1, and --within is positive.")
    compilation.keep()
    import input_pipeline

    predictor = predictor_lib.open_all(options.workdir, options.flip)
    data = predictor.config.data
    records, split = input_pipeline.load(dataclasses.replace(data, root=options.root or data.root))
    check(options.workdir, split.sha256)
    cal = cal_rows(options.workdir[0], records.groups, split.rows)
    print("\n".join(split.notes))
    points = lengths.with_measurements(predictor.points, options.measure)
    absent_known = data.missing == "absent"
    errors = labelled.measure(predictor, records.take(cal), points)
    calibration = fitting.calibrate(
        errors,
        points,
        predictor.identity(),
        levels,
        options.within,
        absent_known=absent_known,
        cropped=are_crops(records.ids, data.crop),
    )
    path = uncertainty.save(options.workdir[0], calibration)
    print(table(calibration))
    if "test" in split.rows:
        tested = labelled.measure(predictor, records.take(split.rows["test"]), points)
        rows = fitting.coverage(tested, calibration, points)
        bins = fitting.probabilities(tested, calibration, absent_known)
        print(reliability.coverage_table(rows))
        if bins:
            print(reliability.bins_table(bins))
        reliability.draw(rows, bins, options.workdir[0] / "figures" / "calibration.png")
        told = {
            "coverage": [dataclasses.asdict(row) for row in rows],
            "probabilities": [dataclasses.asdict(one) for one in bins],
        }
        workdir.write_json(path.with_name(path.stem + "-test.json"), told)
    for sentence in missing(errors, calibration, predictor.config):
        print(sentence)
    print(f"wrote {path}")


if __name__ == "__main__":
    guard(main)

"""Calibrates a trained run on its cal split, so that it can say how far off its points may be.

python -m heatmap.calibration --workdir=runs/mine [--flip] [--levels 0.8 0.9 0.95]

Hold groups out when you train (--config.data.split.cal=0.2): specimens, trays or videos that
nothing else has touched. 95 % takes at least 19 of them. The result lies in the workdir, where
heatmap.predict finds it; with it are told the coverage that was reached on the test split, and a
reliability plot, figures/calibration.png.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from heatmap import command_line, compilation, conformal, evaluate, workdir
from heatmap.checkpoint import LATEST, Checkpoints
from heatmap.errors import UserError, guard
from heatmap.inference import batches, uncertainty
from heatmap.inference import predictor as predictor_lib
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor
from heatmap.inference.uncertainty import Calibration
from heatmap.keypoints import KeypointSet, Measurement
from heatmap.pairs import cheaper_order, distance
from heatmap.report import reliability

_WITHIN = 0.05


@dataclasses.dataclass(frozen=True)
class Errors:
    """Predictions of labelled instances, and how far off they are.

    Attributes:
      found: N instances.
      groups: [N] str.
      points: [N, K] px, infinite where lost, NaN where not labelled.
      lines: [N, M] px, of the length of each measurement, NaN likewise.
      reference: [N] px, the diagonal of the extent of the labelled points.
      present: [N, K] bool, whether the point is in the picture.
    """

    found: Instances
    groups: np.ndarray
    points: np.ndarray
    lines: np.ndarray
    reference: np.ndarray
    present: np.ndarray


def measure(predictor: Predictor, records) -> Errors:
    """Predicts records, as heatmap.predict would, and compares them with their labels."""

    def step(_, batch):
        return predictor(batch["image"]), 0.0, 0.0

    with jax.set_mesh(predictor.mesh):
        decoded, _ = evaluate.collect(predictor.runs[0], step, None, records)
    return compare(batches.of_records(records, decoded, predictor), records, predictor.points)


def compare(found: Instances, records, points: KeypointSet) -> Errors:
    """Sets predictions beside the labels of their records, pairs in the order that suits them."""
    weight = records.labelled.astype(np.float64)
    pairs = points.interchangeable_pairs
    truth, weight = cheaper_order(found.points, records.keypoints, weight, pairs)
    labelled = weight > 0
    errors = np.where(labelled, distance(found.points, truth), np.nan)
    lines = [line_errors(found, truth, labelled, line) for line in points.measurements]
    low = np.where(labelled[..., None], truth, np.inf).min(axis=1)
    high = np.where(labelled[..., None], truth, -np.inf).max(axis=1)
    return Errors(
        found=found,
        groups=records.groups,
        points=errors,
        lines=np.stack(lines, axis=1) if lines else np.zeros((len(found), 0)),
        reference=distance(low, high),
        present=labelled,
    )


def line_errors(
    found: Instances, truth: np.ndarray, labelled: np.ndarray, line: Measurement
) -> np.ndarray:
    """Returns [N] px, |measured - true length|, infinite where lost, NaN where not labelled."""
    _, a, b = line
    measured = distance(found.points[:, a], found.points[:, b])
    error = np.abs(measured - distance(truth[:, a], truth[:, b]))
    return np.where(labelled[:, a] & labelled[:, b], error, np.nan)


def calibrate(
    errors: Errors,
    points: KeypointSet,
    identity: str,
    levels: Sequence[float],
    within: float,
    absent_known: bool,
    cropped: bool = False,
) -> Calibration:
    """Finds the factors of a predictor.

    Args:
      errors: of the cal split.
      points: what the K points mean.
      identity: of the predictor.
      levels: of coverage, ascending.
      within: share of the reference length that counts as right.
      absent_known: whether a missing label says that the point is not in the picture.
      cropped: whether the instances are crops by their boxes.

    Raises:
      UserError: if there are too few groups for the highest level.
    """
    groups = len(np.unique(errors.groups))
    needed = conformal.groups_needed(max(levels))
    if groups < needed:
        raise UserError(
            f"The cal split holds {groups} groups, too few for intervals at {max(levels):.0%}, "
            f"which take {needed}: hold out more (data.split.cal), or ask for less with --levels."
        )
    scale, found = uncertainty.spread(errors.found), errors.found

    def each(columns: np.ndarray, scales: np.ndarray, names: Sequence[str]) -> dict:
        return {
            name: uncertainty.factors(columns[:, i], scales[:, i], errors.groups, levels)
            for i, name in enumerate(names)
        }

    lengths = [uncertainty.length_spread(found, line) for line in points.measurements]
    apart = np.isfinite(errors.reference) & (errors.reference > 0)
    known = (absent_known | errors.present) & apart[:, None]  # an absent point is nowhere right
    groups_of = np.broadcast_to(errors.groups[:, None], known.shape)
    right = errors.present & (errors.points < within * errors.reference[:, None])
    confidence = visibility = None
    if known.any():
        confidence = uncertainty.monotone(found.score[known], right[known], groups_of[known])
    if absent_known and not errors.present.all() and not np.isnan(found.score).all():
        flat = (found.score.ravel(), errors.present.ravel(), groups_of.ravel())
        visibility = uncertainty.monotone(*flat)
    return Calibration(
        identity=identity,
        levels=tuple(levels),
        groups=groups,
        examples=len(found),
        points=each(errors.points, scale, points.names),
        lines=each(
            errors.lines,
            np.stack(lengths, axis=1) if lengths else errors.lines,
            [name for name, *_ in points.measurements],
        ),
        within=within,
        confidence=confidence,
        visibility=visibility,
        cropped=cropped,
    )


def coverage(
    errors: Errors, calibration: Calibration, points: KeypointSet
) -> list[reliability.Row]:
    """Measures how often the intervals hold what an annotator marked, each group weighing the same.

    Args:
      errors: of another split.
      calibration: of the same predictor.
      points: what the points mean.

    Returns:
      A row for all points together and for each measurement, by level.
    """
    radii = calibration.radii(errors.found, points.names)
    widths = calibration.half_widths(errors.found, points.measurements)
    rows = []
    for i, level in enumerate(calibration.levels):
        rows.append(reliability.row("points", level, errors.points, radii[..., i], errors.groups))
        for m, (name, *_) in enumerate(points.measurements):
            column = (errors.lines[:, [m]], widths[:, [m], i])
            rows.append(reliability.row(name, level, *column, errors.groups))
    return [row for row in rows if row is not None]


def table(calibration: Calibration) -> str:
    """Lays out by what each yardstick has to be multiplied."""
    rows = {**calibration.points, **calibration.lines}
    head = "times its spread"
    width = max(map(len, [head, *rows]))
    lines = [
        f"calibrated with {calibration.examples} instances of {calibration.groups} groups",
        f"{head:<{width}}" + "".join(f"{level:9.0%}" for level in calibration.levels),
    ]
    for name, row in rows.items():
        cells = "".join(f"{factor:9.3g}" for factor in row) or "   too few groups show it"
        lines.append(f"{name:<{width}}{cells}")
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


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, calibrates, and tells the coverage on the test split."""
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_models(parser)
    parser.add_argument("--levels", type=float, nargs="+", default=list(uncertainty.LEVELS))
    parser.add_argument(
        "--within", type=float, default=_WITHIN, help="right is: within this share of the extent"
    )
    parser.add_argument("--root", default="", help="where the data are now, if they have moved")
    options = parser.parse_args(arguments)
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
    errors = measure(predictor, records.take(cal))
    calibration = calibrate(
        errors,
        predictor.points,
        predictor.identity(),
        levels,
        options.within,
        absent_known=data.missing == "absent",
        cropped=are_crops(records.ids, data.crop),
    )
    path = uncertainty.save(options.workdir[0], calibration)
    print(table(calibration))
    if "test" in split.rows:
        tested = measure(predictor, records.take(split.rows["test"]))
        rows = coverage(tested, calibration, predictor.points)
        print(reliability.coverage_table(rows))
        figure = options.workdir[0] / "figures" / "calibration.png"
        reliability.draw(rows, figure)
        workdir.write_json(
            path.with_name(path.stem + "-test.json"), [dataclasses.asdict(row) for row in rows]
        )
    if calibration.visibility is None:
        print("no visibility: the labels do not tell absent points (data.missing='absent' does)")
    print(f"wrote {path}")


if __name__ == "__main__":
    guard(main)

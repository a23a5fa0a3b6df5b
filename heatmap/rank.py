"""Says what to label next, or which labels to look at again.

python -m heatmap.rank --workdir=runs/mine PICTURES… film.mp4 --every=25 --out=DIR
python -m heatmap.rank --workdir=runs/a --workdir=runs/b DIR '*.png' --flip --out=DIR
python -m heatmap.rank --workdir=runs/mine --labelled --split=test

The first two order pictures, and frames of videos, that have no labels: first those of which the
model is unsure and which do not look alike. DIR/to_label.csv lists them, DIR/to_label.png shows a
dozen. The last orders the labelled pictures of the run by the label that the model doubts most:
doubted_labels.csv and .png in DIR, by default WORKDIR/rank. Pictures that it was trained on it may
have learned by heart, with their wrong labels: trust the other splits.
"""

import argparse
import contextlib
import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from heatmap import compilation, evaluate, geometry, state, workdir
from heatmap.checkpoint import LATEST, Checkpoints
from heatmap.errors import UserError, guard
from heatmap.fields import choose
from heatmap.inference import batches, candidates, doubts, files, predictor, ranking
from heatmap.inference.doubts import Doubt
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor
from heatmap.keypoints import KeypointSet
from heatmap.pairs import cheaper_order
from heatmap.report.examples import gives_maps, inputs
from heatmap.report.findings import Example

_SHOWN, _DPI = 12, 80  # pictures on a contact sheet
_TOLD = 5  # lines on the screen
_ALL = "all"


def rank_pictures(options: argparse.Namespace) -> None:
    """Says which pictures to label next.

    Raises:
      UserError: if nothing tells how sure the model is, or nothing can be read.
    """
    from input_pipeline import coco, sources, video

    named = sources.find(options.inputs)
    if any(source.is_video for source in named):
        video.library()
    boxes = coco.read_boxes(options.boxes) if options.boxes else None
    model = predictor.open_all(options.workdir, options.flip)
    if not (gives_maps(model.config) or options.flip or len(options.workdir) > 1):
        raise UserError(
            f"{options.workdir[0]} gives coordinates without maps, which do not tell how sure it "
            "is of them: add --flip, or a second --workdir to compare it with."
        )
    with workdir.locked(options.out):
        found, problems = candidates.look(model, named, boxes, options.every)
        files.write_problems(options.out / "problems.csv", problems)
        rows, clusters = ranking.choose(found.features, found.uncertainty, options.count)
        chosen = found.take(rows)
        _write(
            options.out / "to_label.csv",
            ["rank", "source", "frame", "uncertainty", "cluster"],
            (
                [i + 1, named[chosen.source[i]].name, chosen.frame[i], f"{u:.5g}", clusters[i]]
                for i, u in enumerate(chosen.uncertainty)
            ),
        )
        first = chosen.take(slice(_SHOWN))
        shown = candidates.examples(model, named, boxes, first)
        draw(options.out / "to_label.png", shown, model.points)
    if problems:
        print(f"{len(problems)} could not be read; {options.out / 'problems.csv'} lists them")
    print(f"wrote {len(rows)} of {len(found)} pictures to {options.out / 'to_label.csv'}")


@dataclasses.dataclass(frozen=True)
class Judged:
    """A split and what a model makes of its labels.

    Attributes:
      name: of the split.
      records: its N instances.
      predicted: [N, K, 2] px.
      truth: [N, K, 2] px, NaN where not labelled.
      doubts: of those with a label, the largest first.
    """

    name: str
    records: Any
    predicted: np.ndarray
    truth: np.ndarray
    doubts: list[Doubt]


def predict(model: Predictor, records) -> Instances:
    """Predicts labelled records, `input_pipeline.Records`, as evaluation does."""

    def step(_, batch):
        return model.examine(batch["image"]), 0.0, 0.0

    with jax.set_mesh(model.mesh):
        examined, _ = evaluate.collect(model.runs[0], step, None, records)
    return batches.of_records(records, examined.decoded, model)


def judge(model: Predictor, name: str, records, found: Instances, count: int) -> Judged:
    """Orders the records of a split by the label that is doubted most.

    Args:
      model: that answers.
      name: of the split.
      records: `input_pipeline.Records`.
      found: from `predict`.
      count: how many doubts are wanted.
    """
    # Where the order of a pair means nothing, or cannot be seen, no label of it is wrong.
    free = model.config.loss.interchangeable or not model.points.order_known
    pairs = model.points.interchangeable_pairs if free else ()
    weight = records.labelled.astype(np.float64)
    truth, weight = cheaper_order(found.points, records.keypoints, weight, pairs)
    truth = np.where(weight[..., None] > 0, truth, np.nan)
    expected = ranking.expected_errors(found, model.config)
    listed = doubts.rank(found.points, truth, expected, count)
    return Judged(name, records, found.points, truth, listed)


def rank_labels(options: argparse.Namespace) -> None:
    """Says which labels to look at again.

    Raises:
      UserError: if the data are gone or have changed, or there is no such split.
    """
    import input_pipeline

    model = predictor.open_all(options.workdir, options.flip)
    data = model.config.data
    records, split = input_pipeline.load(dataclasses.replace(data, root=options.root or data.root))
    for folder in options.workdir:
        evaluate.check_split(folder, Checkpoints(folder, LATEST).meta(), split.sha256)
    rows = {name: rows for name, rows in split.rows.items() if len(rows)}
    if options.split != _ALL:
        rows = {options.split: choose(rows, options.split, "--split")}
    listed = []
    for name, places in rows.items():
        some = records.take(places)
        judged = judge(model, name, some, predict(model, some), options.count)
        listed += [(judged, doubt) for doubt in judged.doubts]
    listed = sorted(listed, key=lambda entry: -entry[1].doubt)[: options.count]
    if not listed:
        raise UserError(f"No instance of {', '.join(rows)} has a label.")
    folder = options.out or options.workdir[0] / "rank"
    with workdir.locked(folder):
        _write_doubts(folder / "doubted_labels.csv", listed, model.points)
        draw(folder / "doubted_labels.png", look(model, listed[:_SHOWN]), model.points)
    for one, doubt in listed[:_TOLD]:
        print(f"{one.name} {_id(one, doubt)}: {doubts.phrase(doubt, model.points)}")
    if "train" in rows:
        print(
            "training pictures may have been learned with their wrong labels: train with other "
            "splits (data.split.folds), so that each picture is held out once"
        )
    print(f"wrote {len(listed)} of {sum(map(len, rows.values()))} instances to {folder}")


def _id(one: Judged, doubt: Doubt) -> str:
    name, number = one.records.ids[doubt.row], one.records.instances[doubt.row]
    return f"{name} ({number})" if number else str(name)


def _write_doubts(
    path: pathlib.Path, listed: Sequence[tuple[Judged, Doubt]], points: KeypointSet
) -> None:
    head = ["rank", "split", "id", "instance", "group", "point", "error_px", "doubt", "swapped"]
    rows = []
    for rank, (one, doubt) in enumerate(listed, start=1):
        told = [column[doubt.row] for column in (one.records.ids, one.records.instances)]
        pairs = "; ".join(f"{points.names[a]}/{points.names[b]}" for a, b in doubt.swapped)
        numbers = [f"{doubt.error:.5g}", f"{doubt.doubt:.4g}"]
        group, point = one.records.groups[doubt.row], points.names[doubt.point]
        rows.append([rank, one.name, *told, group, point, *numbers, pairs])
    _write(path, head, rows)


def look(model: Predictor, listed: Sequence[tuple[Judged, Doubt]]) -> list[Example]:
    """Returns the pictures of doubts with their labels and predictions."""
    shown: dict[int, Example] = {}
    for one in {id(one): one for one, _ in listed}.values():
        ranks = [rank for rank, (other, _) in enumerate(listed) if other is one]
        places = np.array([listed[rank][1].row for rank in ranks])
        pixels, wanted, affines = inputs(one.records, model.config, places)
        pictures = np.concatenate(pixels)[wanted]
        for rank, place, picture, affine in zip(ranks, places, pictures, affines, strict=True):
            doubt = listed[rank][1]
            what = f"{model.points.names[doubt.point]} {doubt.error:.0f} px off"
            if doubt.swapped:
                what = doubts.swaps(doubt.swapped[:1], model.points)[0]
            shown[rank] = candidates.example(
                f"{rank + 1}. {what}",
                picture,
                geometry.apply(affine, one.predicted[place]),
                geometry.apply(affine, one.truth[place]),
            )
    return [shown[rank] for rank in sorted(shown)]


def _write(path: pathlib.Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    with workdir.replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def draw(path: pathlib.Path, shown: Sequence[Example], points: KeypointSet) -> None:
    """Draws pictures with predicted points (+) and, where there are any, their labels (o)."""
    from heatmap.report import pictures

    with workdir.replacing(path) as temporary:
        pictures.contact(shown, points).savefig(temporary, dpi=_DPI, format="png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.rank",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="picture, video, folder or glob")
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        action="append",
        required=True,
        help="of a trained run; given again, the models vote",
    )
    parser.add_argument("--flip", action="store_true", help="predict the mirrored picture too")
    parser.add_argument("--out", type=pathlib.Path, help="where results go")
    parser.add_argument("--count", type=int, default=50, help="how many to list; default: 50")
    parser.add_argument("--every", type=int, default=1, help="of a video every so many-th frame")
    parser.add_argument("--boxes", type=pathlib.Path, help="COCO file with a box for each instance")
    parser.add_argument("--labelled", action="store_true", help="rank labels of the run's own data")
    parser.add_argument("--split", default=_ALL, help="of the labelled ones; default: all")
    parser.add_argument("--root", default="", help="where the data are now, if they have moved")
    return parser


def _check(options: argparse.Namespace) -> None:
    if min(options.count, options.every) < 1:
        raise UserError("--count and --every are whole numbers from 1.")
    if options.labelled and options.inputs:
        raise UserError(
            f"--labelled ranks the run's own data, not {options.inputs[0]}; leave one out."
        )
    if not options.labelled and not (options.inputs and options.out):
        raise UserError(
            "Name pictures to choose from and --out=DIR for the list, or rank labels (--labelled)."
        )


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and ranks."""
    options = _parser().parse_intermixed_args(arguments)
    _check(options)
    compilation.keep()
    batch_size = workdir.read_config(options.workdir[0]).eval.batch_size
    with contextlib.suppress(RuntimeError):  # a process that has computed keeps its devices
        state.divide_cpu(batch_size)
    if options.labelled:
        rank_labels(options)
    else:
        rank_pictures(options)


if __name__ == "__main__":
    guard(main)

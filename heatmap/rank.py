"""Says what to label next, or which labels to look at again.

python -m heatmap.rank --workdir=runs/mine PICTURES… film.mp4 --every=25 --out=DIR
python -m heatmap.rank --workdir=runs/a --workdir=runs/b DIR '*.png' --flip --out=DIR
python -m heatmap.rank --workdir=runs/mine --labelled --split=test

The first two order pictures, and frames of videos, that have no labels: first those of which the
model is unsure and which look neither alike nor like what the run's data have labels of. DIR/
to_label.csv lists them, DIR/to_label.png shows a dozen. The last orders the labelled pictures of
the run by the label that the model doubts most: doubted_labels.csv and .png in DIR, by default
WORKDIR/rank. Pictures that it was trained on it may have learned by heart, with their wrong labels:
trust the other splits.
"""

import argparse
import contextlib
import csv
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from heatmap import command_line, compilation, evaluate, state, workdir
from heatmap.checkpoint import LATEST, Checkpoints
from heatmap.errors import UserError, guard
from heatmap.fields import choose
from heatmap.inference import candidates, doubts, files, judged, own_data, predictor, ranking
from heatmap.inference.candidates import Candidates
from heatmap.inference.doubts import Doubt
from heatmap.inference.judged import Judged
from heatmap.keypoints import KeypointSet
from heatmap.report.examples import gives_maps
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

    named, unread = sources.find(options.inputs, but=options.out)
    if any(source.is_video for source in named):
        video.library()
    boxes = coco.read_boxes(options.boxes) if options.boxes else None
    model = predictor.open_all(options.workdir, options.flip)
    if not (gives_maps(model.config) or options.flip or len(options.workdir) > 1):
        raise UserError(
            f"{options.workdir[0]} gives coordinates without maps, which do not tell how sure it "
            "is of them: add --flip, or a second --workdir to compare it with."
        )
    records = own_data.records_of(model.config, options.root)
    fresh = own_data.without(named, records)
    if not fresh:
        raise UserError(f"All {len(named)} pictures have labels already; name others.")
    listing = options.out / "to_label.csv"
    with workdir.locked(options.out):
        found, problems = candidates.look(model, fresh, boxes, options.every)
        files.write_problems(options.out / "problems.csv", [*unread, *problems])
        chosen = ranking.choose(
            found.features, found.uncertainty, options.count, own_data.features(model, records)
        )
        first = _write_choice(listing, fresh, found, chosen)
        shown = candidates.examples(model, fresh, boxes, first.take(slice(_SHOWN)))
        draw(options.out / "to_label.png", shown, model.points)
    files.tell_problems(options.out / "problems.csv", unread, problems)
    if len(fresh) < len(named):
        print(f"{len(named) - len(fresh)} have labels already, and are not proposed")
    print(f"wrote {len(chosen.rows)} of {len(found)} pictures to {listing}")


def _write_choice(
    path: pathlib.Path, named: Sequence, found: Candidates, chosen: ranking.Choice
) -> Candidates:
    """Writes the list of pictures to label, and returns them."""
    first = found.take(chosen.rows)
    head = ["rank", "source", "frame", "uncertainty", "cluster"]
    rows = zip(first.source, first.frame, first.uncertainty, chosen.clusters, strict=True)
    listed = (
        [rank, named[source].name, frame, f"{uncertainty:.5g}", cluster]
        for rank, (source, frame, uncertainty, cluster) in enumerate(rows, start=1)
    )
    _write(path, head, listed)
    return first


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
        found = judged.judge(model, name, some, judged.predict(model, some), options.count)
        listed += [(found, doubt) for doubt in found.doubts]
    listed = sorted(listed, key=lambda entry: -entry[1].doubt)[: options.count]
    if not listed:
        raise UserError(f"No instance of {', '.join(rows)} has a label.")
    folder = options.out or options.workdir[0] / "rank"
    with workdir.locked(folder):
        _write_doubts(folder / "doubted_labels.csv", listed, model.points)
        draw(folder / "doubted_labels.png", judged.look(model, listed[:_SHOWN]), model.points)
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
    command_line.add_models(parser)
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

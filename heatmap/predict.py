"""Finds the points in pictures and videos with a trained run, and measures what they span.

python -m heatmap.predict --workdir=runs/mine PICTURES… --out=DIR
python -m heatmap.predict --workdir=runs/mine film.mp4 --out=DIR --overlay
python -m heatmap.predict --workdir=runs/a --workdir=runs/b DIR '*.png' --flip --out=DIR
python -m heatmap.predict --workdir=runs/mine DIR --out=DIR --measure length=2-3 --px_per_cm=212

INPUT is a picture, a video, a folder or a glob of them. The same command, given again, does only
what is missing; a picture that cannot be read is told, listed in DIR/problems.csv and left out.
Points come with intervals if the run has been calibrated (python -m heatmap.calibration).
"""

import argparse
import contextlib
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from heatmap import command_line, compilation, state, workdir
from heatmap.errors import UserError, guard
from heatmap.inference import (
    batches,
    files,
    lengths,
    overlay,
    predictor,
    scales,
    tables,
    uncertainty,
)
from heatmap.inference.predictor import Predictor
from heatmap.inference.scales import Bar, Scales
from heatmap.inference.tables import Meaning
from heatmap.keypoints import KeypointSet

_BLOCK = 256  # pictures whose results are written at a time


def predict(
    model: Predictor, found_sources: Sequence, boxes, out: pathlib.Path, boxes_hash: str
) -> tuple[files.Stream, list]:
    """Predicts what is missing in a folder.

    Args:
      model: that answers.
      found_sources: from `input_pipeline.sources.find`.
      boxes: of `input_pipeline.coco.read_boxes`, or None.
      out: the folder.
      boxes_hash: another one for other boxes.

    Returns:
      (what gives all instances of these sources; `input_pipeline.sources.Problem`s).

    Raises:
      UserError: if the folder holds something else.
    """
    from heatmap.inference.parts import Parts
    from input_pipeline import sources, video

    parts = Parts(out, {"predictor": model.identity(), "boxes": boxes_hash})
    missing = parts.missing(found_sources)
    first = {source: parts.next_frame(source) if source.is_video else 0 for source in missing}
    counts = [video.count(s.path) - first[s] if s.is_video else 1 for s in missing]
    if len(missing) < len(found_sources):
        print(f"{len(found_sources) - len(missing)} of {len(found_sources)} are done already")
    problems: list = []
    events = sources.read(missing, model.config, boxes, first.__getitem__)
    total = sum(max(count, 1) for count in counts)
    with tqdm(total=total, unit="picture", desc="predicting", file=sys.stderr) as bar:
        while block := list(itertools.islice(events, 1)):
            following = itertools.chain(block, itertools.islice(events, _BLOCK - 1))
            _predict_block(model, following, parts, problems, bar)
    for problem in problems:
        print(problem.reason, file=sys.stderr)
    return lambda: parts.stream(found_sources), problems


def _predict_block(model: Predictor, events: Iterator, parts, problems: list, bar: tqdm) -> None:
    """Predicts a few hundred pictures and writes them as one part."""
    from input_pipeline.sources import End, Problem

    seen: dict = {}
    ended: dict = {}

    def pictures() -> Iterator:
        for event in events:
            if isinstance(event, End):
                ended[event.source] = event.frames
                continue
            bar.update()
            if isinstance(event, Problem):
                problems.append(event)
            else:
                first, _ = seen.get(event.source, (event.frame, event.frame))
                seen[event.source] = (first, event.frame)
                yield event

    found = [batches.instances_of(*batch) for batch in batches.each(model, model, pictures())]
    if seen or ended:
        parts.add(batches.joined(model, found), seen, ended)


def read_scales(options: argparse.Namespace, points: KeypointSet) -> Scales:
    """Reads what the command line says of scales.

    Raises:
      UserError: for what makes no sense.
    """
    bar = None
    if options.scale_bar:
        ends, _, length = options.scale_bar.rpartition("=")
        a, b = lengths.two_points(points, ends, f"--scale_bar {options.scale_bar}")
        try:
            bar = Bar(a, b, float(length))
        except ValueError:
            bar = None
        if bar is None or not 0 < bar.cm < float("inf"):
            raise UserError(f"--scale_bar {options.scale_bar} must end in centimetres: 4-5=1.0.")
    return Scales(
        bar=bar,
        by_name=scales.read(options.scales) if options.scales else {},
        everywhere=scales.parse(options.px_per_cm) if options.px_per_cm else None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m heatmap.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, video, folder or glob")
    command_line.add_models(parser)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where results go")
    parser.add_argument("--boxes", type=pathlib.Path, help="COCO file with a box for each instance")
    parser.add_argument(
        "--formats",
        default="parquet,csv",
        help=f"of {','.join(files.FORMATS)}; default: parquet,csv",
    )
    parser.add_argument("--overlay", action="store_true", help="draw pictures and videos as well")
    lengths.add_flag(parser)
    parser.add_argument("--px_per_cm", default="", help="of all pictures: 782.9, or 782.9,1.5 ± sd")
    parser.add_argument(
        "--scales", type=pathlib.Path, help="CSV: file, px_per_cm[, px_per_cm_sd], or two marks"
    )
    parser.add_argument(
        "--scale_bar", default="", metavar="A-B=CM", help="two points that are so far apart"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, predicts, and writes the files."""
    options = _parser().parse_intermixed_args(arguments)
    formats = options.formats.split(",")
    files.check(formats)
    compilation.keep()
    from input_pipeline import coco, sources

    named, unread = sources.find(options.inputs, but=options.out)
    if any(source.is_video for source in named):
        from input_pipeline import video

        video.library()
    boxes = coco.read_boxes(options.boxes) if options.boxes else None
    files.check_instances(formats, named, boxes)
    boxes_hash = hashlib.sha256(options.boxes.read_bytes()).hexdigest() if options.boxes else ""
    configs = [workdir.read_config(folder) for folder in options.workdir]
    with contextlib.suppress(RuntimeError):  # a process that has computed keeps its devices
        state.divide_cpu(configs[0].eval.batch_size)
    model = predictor.open_all(options.workdir, options.flip)
    points = lengths.with_measurements(model.points, options.measure)
    told_scales = read_scales(options, points)
    sources.check_entries(named, told_scales.by_name, f"--scales {options.scales}")
    sources.check_entries(named, boxes or {}, f"--boxes {options.boxes}")
    if boxes is None and (lack := predictor.lack_of_boxes(model.config)):
        print(lack, file=sys.stderr)
    calibration = uncertainty.load_for(options.workdir[0], model.identity(), boxes is not None)
    meaning = Meaning(points, model.config, calibration, told_scales)
    with workdir.locked(options.out):
        stream, problems = predict(model, named, boxes, options.out, boxes_hash)
        files.write_problems(options.out / "problems.csv", [*unread, *problems])
        files.write(formats, options.out, stream, meaning)
        if options.overlay:
            since = uncertainty.time_of(options.workdir[0], model.identity())
            overlay.write(options.out, stream, meaning, named, since)
    files.tell_problems(options.out / "problems.csv", unread, problems)
    _tell(options, meaning, [source.name for source in named])


def _tell(options: argparse.Namespace, meaning: Meaning, names: Sequence[str]) -> None:
    """Says what was done, and what the numbers do not have."""
    if meaning.calibration is None:
        print(
            "no intervals: these models have not been calibrated for such pictures with these "
            "settings (python -m heatmap.calibration)"
        )
    elif unknown := tables.unknown_lengths(meaning.calibration, meaning.points):
        print(
            f"no intervals for {', '.join(unknown)}: the calibration does not know them, or too "
            "few groups showed them (heatmap.calibration --measure adds lengths)"
        )
    bare = meaning.scales.unknown(names)
    if meaning.points.measurements and not meaning.scales.any:
        print("lengths are in pixels: --px_per_cm, --scales or --scale_bar gives centimetres")
    elif meaning.points.measurements and bare and not meaning.scales.bar:
        print(
            f"no centimetres for {len(bare)} of {len(names)} inputs, such as {bare[0]}, which "
            f"{options.scales} does not list"
        )
    print(f"wrote the points of {len(names)} inputs to {options.out}")


if __name__ == "__main__":
    guard(main)

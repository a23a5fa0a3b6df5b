"""Checks a config and its data before hours are spent on them.

python -m heatmap.doctor --config=configs/sigma2.py [--out=DIR] [--workdir=RUN] [--no_step]

Prints a line for each check: ok, warn (look at it) or FAIL (mend it), with its numbers and what to
do. DIR, by default runs/doctor-CONFIG, gets all of them as doctor.json, and contact_sheet.png: the
first augmented examples with their targets. With --workdir, a trained run's worst errors on
examples that it has not seen are looked at too; with --no_step, nothing is trained or timed.

The exit code is 1 if a check fails, and 2 if the command or the data cannot be read at all.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from heatmap import command_line, geometry, hardware, workdir
from heatmap.checks.finding import FAIL, OK, Finding, failed
from heatmap.config import Config
from heatmap.errors import UserError, guard
from heatmap.keypoints import LABELLED

_REPORT, _SHEET = "doctor.json", "contact_sheet.png"
_EXAMPLES, _DPI = 8, 72  # of the contact sheet


def examine(
    config: Config, records, split, run: pathlib.Path | None = None, step: bool = True
) -> Iterator[Finding]:
    """Yields what each check finds, quick ones first.

    Args:
      config: to be checked.
      records: all `input_pipeline.Records` of its data.
      split: `input_pipeline.Split` of them.
      run: the workdir of a finished run, whose predictions are looked at.
      step: whether to take a few steps, for memory and time.

    Raises:
      UserError: if a picture cannot be read, or `run` has no predictions.
    """
    from heatmap.checks import codec, cost, duplicates, frames, outliers, places, sides, trained
    from input_pipeline import batching, pictures

    splits = {name: records.take(rows) for name, rows in split.rows.items()}
    used = records.take(np.concatenate(list(split.rows.values())))
    names = np.repeat(list(splits), [len(part) for part in splits.values()])
    yield _data(splits, (*records.skipped, *records.notes, *split.notes))
    parts = _parts(config, splits)
    yield parts
    yield frames.labels(used, names, config.data.pixel_center)
    yield frames.inside(used, batching.eval_affines(used, config), config.data.image_size)
    yield frames.scale(used)
    yield frames.augmented(*_first_epoch(config, splits["train"]), config.data.image_size)
    yield sides.mirrored(used.points, config.augment)
    found = sides.look(used)
    yield sides.check(used, found)
    yield outliers.check(used.take(np.delete(np.arange(len(used)), sides.exchanged(found))))
    if run:
        yield trained.check(run, used.points)
    yield codec.check(config, splits["train"])
    seen = [(row, *duplicates.fingerprint(p)) for row, p in pictures.each(used, config.data)]
    rows, hashes, cells = (np.array(column) for column in zip(*seen, strict=True))
    yield duplicates.check(hashes, cells, names[rows], used.ids[rows])
    yield places.check(used, rows, cells)
    if step and parts.level == OK:
        yield cost.check(config, splits)


def _data(splits: Mapping[str, Any], notes: tuple[str, ...]) -> Finding:
    """Says what there is."""
    sizes = {name: len(part) for name, part in splits.items()}
    counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
    points = splits["train"].points
    message = f"{counts}; {points.count} points: {', '.join(points.names)}"
    return Finding(OK, "data", message, notes, {"examples": sizes, "points": points.to_json()})


def _parts(config: Config, splits: Mapping[str, Any]) -> Finding:
    """Checks that model, loss, decoder, batches and the metric to choose by fit one another."""
    from heatmap import decoding, evaluate
    from heatmap import run as run_lib
    from input_pipeline import batching

    try:
        decoding.check(config)
        run_lib.check(config, splits["train"].points)
        batching.check_batch_size(config.train.batch_size)
        if config.augment.where == "device":
            batching.source_size(splits["train"])
        metric = evaluate.best_metric(config, splits["val"])
    except UserError as error:
        return Finding(FAIL, "config", str(error))
    decoder = decoding.decoder_name(config)
    message = (
        f"{config.model.name}, {config.loss.name} and {decoder} fit one another; {metric} chooses "
        "the best checkpoint"
    )
    return Finding(OK, "config", message, data={"best_metric": metric, "decoder": decoder})


def _first_epoch(config: Config, records) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points [N, K, 2] as the first epoch shows them, and which are labelled."""
    from input_pipeline import batching

    steps = batching.last_step_of(1, len(records), config.train.batch_size)
    batches = list(batching.train_batches(records, config, 0, steps, features={}))
    visible = np.concatenate([batch["visibility"] == LABELLED for batch in batches])
    return np.concatenate([batch["keypoints"] for batch in batches]), visible


def contact_sheet(config: Config, records) -> Any:
    """Draws the first augmented examples of training with their targets.

    Args:
      config: of the run.
      records: `input_pipeline.Records` that train.

    Returns:
      A matplotlib figure.
    """
    from heatmap import targets
    from heatmap.report import budget, examples, pictures
    from heatmap.report.findings import Example
    from input_pipeline import batching

    # Made on the host, whatever makes them in training: the same numbers move the pixels.
    here = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, cache=""),
        augment=dataclasses.replace(config.augment, where="host"),
    )
    whole = next(batching.train_batches(records, here, 0, 1))
    batch = {name: array[:_EXAMPLES] for name, array in whole.items()}
    visible = (batch["visibility"] == LABELLED)[..., None]
    truth = np.where(visible, batch["keypoints"], np.nan)
    there = visible & geometry.inside(truth, config.data.image_size)[..., None]
    read = np.where(there, budget.read_targets(config, batch["keypoints"]), np.nan)
    maps: list[np.ndarray | None] = [None] * len(truth)
    if examples.gives_maps(config):
        rendered = targets.render(np, batch["keypoints"], config) / targets.peak(config.targets)
        maps = list(rendered * visible[:, None, None, :, 0])
    shown = [
        Example(
            row=int(row),
            id=str(records.ids[row]),
            instance=int(records.instances[row]),
            picture=batch["image"][n],
            truth=truth[n],
            predicted=read[n][None],
            maps=(maps[n],),
            boxes=geometry.image_box(config.data.image_size)[None],
        )
        for n, row in enumerate(batch["row"])
    ]
    return pictures.contact(shown, records.points)


def save(folder: pathlib.Path, config: Config, findings: list[Finding], sheet: Any) -> None:
    """Writes the findings as JSON and the contact sheet as PNG."""
    report = {
        "failed": failed(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "config": dataclasses.asdict(config),
    }
    workdir.write_json(folder / _REPORT, report)
    with workdir.replacing(folder / _SHEET) as temporary:
        sheet.savefig(temporary, dpi=_DPI, format="png")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, checks, prints and saves."""
    parser = command_line.parser("python -m heatmap.doctor", __doc__)
    parser.add_argument("--out", type=pathlib.Path, help="default: runs/doctor-CONFIG")
    parser.add_argument("--workdir", type=pathlib.Path, help="of a finished run on the same data")
    parser.add_argument("--no_step", action="store_true", help="train nothing, time nothing")
    options, config = command_line.read(parser, arguments, default="configs/common.py")
    name = pathlib.Path(options.config.split(":")[0]).stem
    folder = options.out or pathlib.Path("runs") / f"doctor-{name}"

    from heatmap import compilation, state

    compilation.keep()
    if arguments is None:  # a process of its own, in which JAX has not started
        state.divide_cpu(config.train.batch_size)  # as a run does

    import input_pipeline

    records, split = input_pipeline.load(config.data)
    findings = []
    for finding in examine(config, records, split, options.workdir, not options.no_step):
        print(finding.text(), flush=True)
        findings.append(finding)
    sheet = contact_sheet(config, records.take(split.rows["train"]))
    save(folder, config, findings, sheet)
    print(f"wrote {folder / _REPORT} and {folder / _SHEET}")
    if failed(findings):
        sys.exit(1)


if __name__ == "__main__":
    hardware.restart_with_kept_memory()
    guard(main)

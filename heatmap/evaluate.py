"""Predicts a split once and scores it once, in pixels of the original pictures.

python -m heatmap.evaluate --workdir=runs/sigma2 [--split=test] [--decoder=argmax] [--csv]
"""

import argparse
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from heatmap import (
    compilation,
    decoding,
    diagnosis,
    geometry,
    metrics,
    objective,
    prediction_table,
    workdir,
)
from heatmap import config as config_lib
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.checkpoint import LATEST, Checkpoints, Meta
from heatmap.config import Config
from heatmap.errors import UserError, guard
from heatmap.fields import choose
from heatmap.predictions import Predictions
from heatmap.run import Run

PredictStep = Callable[[Any, Any], tuple[Any, jax.Array, jax.Array]]
LookStep = Callable[[Any, Any], tuple[jax.Array, jax.Array]]
Batches = Iterable[dict[str, np.ndarray]]


def make_predict_step(run: Run) -> PredictStep:
    """Compiles (weights, batch on the devices) -> (points read off, loss sum, loss weight)."""

    def predict_step(weights, batch):
        output = run.network.predict(weights, run_lib.network_input(batch, run.config))
        return decoding.decode(run.config, output), *objective.compute(
            run.config, run.points, output, batch
        )

    return jax.jit(predict_step, out_shardings=state_lib.replicated(run.mesh))


def make_look_step(run: Run) -> LookStep:
    """Compiles (weights, uint8 pixels) -> (raw output, points [B, K, 2] in input pixels)."""

    def look_step(weights, pixels):
        output = run.network.predict(weights, run_lib.normalise_pixels(pixels, run.config))
        return output, decoding.decode(run.config, output).keypoints

    return jax.jit(look_step)


def predict(
    run: Run, step: PredictStep, weights, records, batches: Batches | None = None
) -> tuple[Predictions, float]:
    """Predicts every example of a split once.

    Args:
      run: the model.
      step: from `make_predict_step`.
      weights: {'params', 'frozen', 'stats'}.
      records: `input_pipeline.Records` of the split.
      batches: of them, from `batching.eval_batches`, where they are there already.

    Returns:
      (predictions in pixels of the original pictures, loss of the split).
    """
    decoded, loss = collect(run, step, weights, records, batches)
    return in_original_pixels(run.config, records, decoded), loss


def collect(
    run: Run, step: PredictStep, weights, records, batches: Batches | None = None
) -> tuple[Any, float]:
    """Runs a step on every example of a split once.

    Args:
      run: the model.
      step: (weights, batch on the devices) -> (tree of [B, …], loss sum, loss weight).
      weights: as the step takes them.
      records: `input_pipeline.Records` of the split.
      batches: of them, as `predict` takes them.

    Returns:
      (the tree, its arrays [N, …] on the host; loss of the split).
    """
    from input_pipeline import batching

    parts, total, weight = [], 0.0, 0.0
    sharding = state_lib.sharded(run.mesh)
    if batches is None:
        batches = batching.eval_batches(records, run.config)
    computed = (step(weights, batching.to_devices(batch, sharding)) for batch in batches)
    coming = next(computed, None)
    while coming is not None:  # each is looked at while the next one computes
        found, batch_total, batch_weight = coming
        coming = next(computed, None)
        parts.append(jax.tree.map(np.asarray, found))
        total, weight = total + float(batch_total), weight + float(batch_weight)
    whole = jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(records)], *parts)
    return whole, total / weight if weight else math.nan


def in_original_pixels(config: Config, records, decoded: decoding.Decoded) -> Predictions:
    """Takes what was read off [N, …] in input pixels back to the pictures as they were."""
    from input_pipeline import batching

    original_from_input = geometry.invert(batching.eval_affines(records, config))
    original = geometry.apply(original_from_input, np.asarray(decoded.keypoints, np.float64))
    return beside_truth(records, original, decoded.score, decoded.entropy, decoded.height)


def beside_truth(records, predicted, score, entropy, height) -> Predictions:
    """Puts predictions [N, K, 2] in original pixels beside the labels of their records."""
    return Predictions(
        ids=records.ids,
        instances=records.instances,
        groups=records.groups,
        predicted=predicted,
        score=score,
        entropy=entropy,
        height=height,
        truth=records.keypoints,
        weight=records.labelled.astype(np.float64),
        boxes=records.boxes,
        areas=records.areas,
        sizes=records.sizes,
        px_per_cm=records.px_per_cm,
        species=records.species,
        dataset=records.dataset,
    )


def best_metric(config: Config, records) -> str:
    """Names the validation metric that decides the best checkpoint, before hours are spent.

    By default that is the median error in pixels, without regard to the order of pairs where the
    loss disregards it too.

    Raises:
      UserError: if `train.best_metric` names what validation will not measure.
    """
    blank = np.full(records.labelled.shape, np.nan)
    perfect = beside_truth(records, records.keypoints, blank, blank, blank)
    scores = {"loss": 0.0, **metrics.score(perfect, records.points, config.eval)}
    measured = {f"val/{name}" for name in scores}
    disregarded = config.loss.interchangeable and records.points.interchangeable_pairs
    default = "val/error_px/unordered/median" if disregarded else "val/error_px/median"
    name = config.train.best_metric or (default if default in measured else "val/loss")
    choose(dict.fromkeys(measured), name, "train.best_metric")
    return name


def score(run: Run, split: str, predictions: Predictions, loss: float) -> dict[str, float]:
    """Measures a split; keys begin with its name, e.g. 'test/pck@0.05'."""
    scores = {"loss": loss, **metrics.score(predictions, run.points, run.config.eval)}
    size = run.config.targets.heatmap_size
    scores |= diagnosis.measure(predictions, run.points.names, size)
    return {f"{split}/{name}": value for name, value in scores.items()}


def is_due(config: Config, examples: int, step: int, steps: int) -> bool:
    """Says whether a run validates after a step: an epoch, or so many steps, end with it.

    Args:
      config: of the run.
      examples: in the training split.
      step: number of steps taken.
      steps: of the whole run, the last of which is always due.
    """
    if step == steps:
        return True
    train = config.train
    if train.eval_every_steps:
        return step % train.eval_every_steps == 0
    before, after = (epochs(config, examples, at) for at in (step - 1, step))
    return after // train.eval_every_epochs > before // train.eval_every_epochs


def epochs(config: Config, examples: int, step: int) -> int:
    """Counts the whole epochs that so many steps have seen."""
    return step * config.train.batch_size // examples


def held_out(splits: Collection[str]) -> list[str]:
    """Lists those of a run's splits that are scored: val, and test if the data has one."""
    return [name for name in ("val", "test") if name in splits]


def save_metrics(path: pathlib.Path, scores: Mapping[str, float | None]) -> None:
    """Writes scores as flat JSON; what could not be measured, NaN or None, becomes null."""
    known = {k: v if v is not None and math.isfinite(v) else None for k, v in scores.items()}
    workdir.write_json(path, known)


def table(scores: dict[str, Any]) -> str:
    """Lays the scores to quote out for reading: one row per measure, one column per split.

    Single points, other reference lengths and finer statistics stay in metrics.json.
    """
    splits = [s for s in ("val", "test", "train") if any(k.startswith(f"{s}/") for k in scores)]
    names = [
        name.split("/", 1)[1] for name in scores if splits and name.startswith(f"{splits[0]}/")
    ]
    rows = [name for name in names if metrics.is_quoted(name)]
    width = max(map(len, rows), default=0)
    lines = ["  ".join([" " * width, *(f"{s:>9}" for s in splits)])]
    for name in rows:
        cells = (_cell(scores.get(f"{s}/{name}")) for s in splits)
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def _cell(value) -> str:
    return f"{'-':>9}" if value is None or not math.isfinite(value) else f"{value:9.4g}"


def check_split(folder: pathlib.Path, meta: Meta, sha256: str) -> None:
    """Refuses data that is divided otherwise than when a checkpoint was written.

    Raises:
      UserError: naming the two hashes.
    """
    stored = meta["split_sha256"]
    if stored != sha256:
        raise UserError(
            f"The data or its split has changed since {folder} was trained (split {sha256[:12]}, "
            f"then {stored[:12]}): restore the data, or train in another --workdir."
        )


def evaluate(folder: pathlib.Path, splits: list[str], config: Config) -> dict[str, float]:
    """Scores the best checkpoint of a workdir and writes predictions and metrics.

    Under the run's own decoder the workdir's files are replaced; another decoder's go to
    `decoders/NAME/`, so that they are never taken for the run's result.

    Args:
      folder: the workdir.
      splits: names of splits.
      config: the run's config, perhaps with another decoder.

    Returns:
      The scores.

    Raises:
      UserError: if there is no such split, or the data has changed.
    """
    import input_pipeline

    run = run_lib.open_run(folder, config)
    records, split = input_pipeline.load(config.data)
    check_split(folder, Checkpoints(folder, LATEST).meta(), split.sha256)
    own = workdir.read_config(folder).decoder == config.decoder
    name = config.decoder.name
    if name == "soft_argmax":
        name += f"-beta{config.decoder.beta:g}"
    target = folder if own else folder / "decoders" / name
    step = make_predict_step(run)
    scores: dict[str, float] = {}
    with jax.set_mesh(run.mesh):
        for name in splits:
            rows = choose(split.rows, name, "--split")
            predictions, loss = predict(run, step, run.weights, records.take(rows))
            scores |= score(run, name, predictions, loss)
            path = target / "predictions" / f"{name}.parquet"
            prediction_table.save(path, predictions, run.points.names, config.eval.csv)
    earlier = workdir.read_metrics(target)
    save_metrics(target / workdir.METRICS, {**earlier, **scores})
    print(table(scores))
    return scores


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs `evaluate`."""
    parser = argparse.ArgumentParser(prog="python -m heatmap.evaluate", description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of a training run")
    parser.add_argument("--split", default="", help="train, val or test; default: val and test")
    parser.add_argument("--decoder", default="", help="read the maps with another decoder")
    parser.add_argument("--root", default="", help="where the data are now, if they have moved")
    parser.add_argument("--beta", type=float, help="inverse temperature of soft_argmax")
    parser.add_argument("--csv", action="store_true", help="write predictions as CSV as well")
    options = parser.parse_args(arguments)
    config = workdir.read_config(options.workdir)
    changes: dict[str, Any] = {"name": options.decoder} if options.decoder else {}
    if options.beta is not None:
        changes["beta"] = options.beta
    if changes and decoding.decoder_name(config) == "coordinates":
        raise UserError(f"{options.workdir} gives coordinates; there are no maps to decode.")
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=options.root or config.data.root),
        decoder=dataclasses.replace(config.decoder, **changes),
        eval=dataclasses.replace(config.eval, csv=config.eval.csv or options.csv),
    )
    config = config_lib.from_mapping(dataclasses.asdict(config))  # checks the new values
    compilation.keep()
    with contextlib.suppress(RuntimeError):  # a process that has computed keeps its devices
        state_lib.divide_cpu(config.eval.batch_size)
    there = Checkpoints(options.workdir, LATEST).meta()["splits"]
    evaluate(options.workdir, [options.split] if options.split else held_out(there), config)


if __name__ == "__main__":
    guard(main)

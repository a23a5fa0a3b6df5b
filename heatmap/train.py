"""Trains what a config describes, from the newest checkpoint if there is one.

The loop is only ordering. What a step computes stands in `step`, what is saved in `checkpoint`,
what is measured in `evaluate`.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import input_pipeline
from heatmap import (
    checkpoint,
    diagnosis,
    evaluate,
    features,
    hardware,
    losses,
    metrics,
    optim,
    prediction_table,
    processes,
    workdir,
)
from heatmap import config as config_lib
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap import step as step_lib
from heatmap.checkpoint import BEST, LATEST, Checkpoints
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.progress import TRANSFER, Progress
from heatmap.report import sheet
from heatmap.startup import Startup
from heatmap.state import TrainState
from input_pipeline import batching, host


def train(config: Config, folder: pathlib.Path, startup: Startup | None = None) -> dict[str, float]:
    """Trains, or goes on training, until the config's length is reached.

    Args:
      config: the run's config.
      folder: the workdir; made if it does not exist.
      startup: a clock, to say what the time before the first step went to.

    Returns:
      The scores of the best checkpoint, also in metrics.json; empty if training was interrupted.

    Raises:
      UserError: for anything wrong with config, data or workdir that the user can mend.
    """
    batching.check_batch_size(config.train.batch_size)
    workdir.check(folder, config)
    records, split = input_pipeline.load(config.data)
    if config.augment.where == "device":
        batching.source_size(records)  # refuses records that a device cannot be sent
    left_out = [f"left out: {len(records.skipped)} pictures"] if records.skipped else []
    sha256 = f"split sha256 {split.sha256[:12]}"
    for note in (*records.skipped, *left_out, *records.notes, *split.notes, sha256):
        print(note, flush=True)
    if startup:
        startup.ends("data")
    # The processes of one run share the folder, and the first keeps others out.
    lock = workdir.locked(folder) if processes.is_first() else contextlib.nullcontext()
    with processes.together(), lock:
        return Trainer(config, folder, records, split, startup).run_to_the_end()


class Trainer:
    """One run: the state, the log and where they are kept."""

    def __init__(
        self, config: Config, folder: pathlib.Path, records, split, startup: Startup | None
    ):
        self.config, self.folder, self.startup = config, folder, startup
        self.splits = {name: records.take(rows) for name, rows in split.rows.items()}
        self.steps = batching.steps_per_run(config, len(self.splits["train"]))
        self.best_metric = evaluate.best_metric(config, self.splits["val"])
        self.run = run_lib.build(config, records.points)
        self.optimiser, self.schedule = optim.create(config.optim, self.steps)
        self.train_step = step_lib.make_train_step(self.run, self.optimiser)
        self.train_steps = step_lib.make_train_steps(self.run, self.optimiser)
        self.predict_step = evaluate.make_predict_step(self.run)
        self.look_step = evaluate.make_look_step(self.run)
        saved = checkpoint.saved_step(folder) or 0
        elsewhere = dataclasses.replace(config.data, root="", workers=0)  # may differ by machine
        settings = dataclasses.replace(config, data=elsewhere)
        alike = {"the config": settings.to_json(), "the data or their split": split.sha256}
        processes.agree({**alike, "the newest checkpoint": str(saved)})
        if saved > self.steps:
            raise UserError(
                f"{folder} has been trained for {saved} steps, more than the {self.steps} asked "
                "for; choose another --workdir or a longer run."
            )
        if processes.is_first():
            workdir.claim(folder, config)
        processes.all_see(folder / workdir.CONFIG)
        self.latest, self.best = (Checkpoints(folder, kind, clean=True) for kind in (LATEST, BEST))
        self.meta: checkpoint.Meta = {
            "config": dataclasses.asdict(config),
            "points": records.points.to_json(),
            "split_sha256": split.sha256,
            "splits": sorted(split.rows),
            "log": [],
            "best": None,
        }
        self.state = self._start(split.sha256)
        self.run = dataclasses.replace(self.run, weights={})  # the state holds them from now on
        left = int(self.state.step) < self.steps
        self.resident = self._resident() if left else {}
        self.features = self._features() if left else {}
        self.held_out = {
            name: batching.eval_batches(self.splits[name], config, self.features.get(name))
            for name in evaluate.held_out(self.splits)
        }
        self.stop_asked = False
        self.started = time.monotonic()
        self.meetings = processes.Meetings(int(self.state.step))
        if startup:
            startup.ends("weights")

    @functools.cached_property
    def writer(self) -> Any:
        """Where numbers go, opened when there are some: its libraries load TensorFlow."""
        host.load()
        from heatmap import writers

        created = writers.create(self.folder, self.config)
        return self.opened.enter_context(contextlib.closing(created))

    def _start(self, split_sha256: str) -> TrainState:
        """Makes the first state, or restores the newest."""
        with jax.set_mesh(self.run.mesh):
            create, shapes, places = step_lib.first_state(self.run, self.optimiser)
            if self.latest.step() is None:
                first = jax.jit(create, donate_argnums=0, out_shardings=places)
                return first(self.run.weights)
            stored = self.latest.meta()
            evaluate.check_split(self.folder, stored, split_sha256)
            run_lib.check_config(self.folder, stored, self.config, config_lib.RESUMABLE)
            like = checkpoint.as_tree(checkpoint.shapes(shapes, places))
            frozen = self.run.weights["frozen"]
            state = TrainState(**self.latest.restore(like, frozen=frozen))
        best = stored["best"]
        if best is not None and not self.best.has(best["step"]):
            best = None  # removed by hand; the next evaluation is the best so far
        self.meta |= {"log": stored["log"], "best": best}
        print(f"resumed at step {int(state.step)}", flush=True)
        return state

    def _resident(self) -> dict[str, jax.Array]:
        """Places the training pictures on the devices, if they are to lie there."""
        everywhere = state_lib.replicated(self.run.mesh)
        return batching.resident_pictures(self.splits["train"], self.config.data, everywhere)

    def _features(self) -> dict[str, dict[str, np.ndarray]]:
        """Computes, by split, what the backbone makes of the pictures, if that is to be kept."""
        if not self.config.model.keep_features:
            return {}
        with jax.set_mesh(self.run.mesh):
            found = {
                name: features.compute(self.run, self.state.weights, records)
                for name, records in self.splits.items()
                if len(records)
            }
        size = sum(array.nbytes for arrays in found.values() for array in arrays.values())
        count = sum(len(self.splits[name]) for name in found)
        print(f"keeps the features of {count} pictures, {size / 1e6:.0f} MB", flush=True)
        return found

    def run_to_the_end(self) -> dict[str, float]:
        """Trains the steps that are left, scores the best checkpoint and prints the table."""
        first = int(self.state.step)
        with (
            jax.set_mesh(self.run.mesh),
            asked_to_stop(self._ask_to_stop),
            contextlib.ExitStack() as self.opened,
        ):
            self._write_log()
            if first < self.steps:
                # Before, so that a kill leaves no scores of a shorter run; and after, because
                # `heatmap.evaluate` may have scored an earlier best checkpoint meanwhile.
                self._forget_metrics()
                self._loop(first)
                self._forget_metrics()
            if self.stop_asked or self.meta["best"] is None:
                print(
                    f"stopped at step {int(self.state.step)}; the same command with "
                    f"--workdir={self.folder} goes on from here"
                )
                return {}
            scores = workdir.read_metrics(self.folder)
            if processes.any_says(not all(f"{name}/loss" in scores for name in self.held_out)):
                scores = self._finish()
        print(evaluate.table(scores))
        print(f"state_sha256={state_lib.sha256(self.state)}", flush=True)
        return scores

    def _loop(self, first: int) -> None:
        config, records = self.config, self.splits["train"]
        writer = self.writer  # opened before the first step: what it lacks should be known soon
        kept = self.features.get("train")
        batches = batching.train_batches(records, config, first, self.steps, kept)
        devices = jax.devices()
        counts = devices[0].platform != "cpu"  # where tracing the step once more takes seconds
        progress = Progress(first, self.steps, config, hardware.peak(devices), counts)
        pending = None  # the steps before: they are looked at while the next ones compute
        began = True
        for step, group in self._groups(progress.each(batches), first, progress):
            told = self._take(group, progress)
            if began:
                jax.block_until_ready(told)  # compiled, and no measure of those that follow
                hardware.give_back_memory()
                progress.goes_on(step)
                if self.startup:
                    self.startup.ends("first step")
                    tqdm.write(self.startup.close())
                began = False
            if pending:
                with progress.waits("devices"):
                    self._check_finite(*pending)
            pending = (step, told, [batch["row"] for batch in group])
            due = self._evaluation_is_due(step)
            leaving = self._leaves_after(step)
            progress.advance(step)
            if due or leaving or progress.is_due(step) or self._save_is_due(step):
                with progress.waits("devices"):
                    self._check_finite(*pending)
                loss = float(np.atleast_1d(told.loss)[-1])
                numbers = {
                    "train/loss": loss,
                    "train/oob_points_frac": float(np.atleast_1d(told.outside)[-1]),
                    "learning_rate": float(self.schedule(step - 1)),
                    **progress.show(step, loss),
                }
                writer.write_scalars(step, numbers)
            if due:
                self._validate(step, progress)
            if due or leaving or self._save_is_due(step):
                self.latest.save(step, checkpoint.as_tree(self.state), self.meta)
                if self.meta["best"] is not None:
                    self.best.keep_only(self.meta["best"]["step"])
                self._write_log()
                hardware.give_back_memory()
                progress.goes_on(step)
            if leaving:
                break
        progress.close()
        self.stop_asked = processes.any_says(self.stop_asked)
        if not self.stop_asked and step < self.steps:
            print(f"train.max_hours reached at step {step} of {self.steps}", flush=True)

    def _groups(
        self, batches: Iterator[batching.Batch], first: int, progress: Progress
    ) -> Iterator[tuple[int, list[batching.Batch]]]:
        """Yields (last step, batches) of one dispatch: at most up to where something is due."""
        group = []
        for step, batch in enumerate(batches, start=first + 1):
            group.append(batch)
            due = self._evaluation_is_due(step) or self._save_is_due(step) or progress.is_due(step)
            full = len(group) == self.config.train.steps_per_dispatch
            if full or due or self.meetings.are_at(step):
                yield step, group
                group = []

    def _take(self, group: list[batching.Batch], progress: Progress) -> step_lib.Told:
        """Takes the steps of a group, and returns what they say of themselves, [n] if several."""
        if progress.wants_work:
            shown = batching.to_devices(group[0], state_lib.sharded(self.run.mesh))
            arguments = (self.state, shown, self.resident)
            progress.work = step_lib.work_of(self.run, self.optimiser, *arguments)
        if 1 < len(group) == self.config.train.steps_per_dispatch:
            stacked = {name: np.stack([batch[name] for batch in group]) for name in group[0]}
            with progress.waits(TRANSFER):
                moved = batching.to_devices(stacked, state_lib.sharded(self.run.mesh, axis=1))
            self.state, told = self.train_steps(self.state, moved, self.resident)
            return told
        each = []  # for a shorter group no program is compiled of its own
        for batch in group:
            with progress.waits(TRANSFER):
                moved = batching.to_devices(batch, state_lib.sharded(self.run.mesh))
            self.state, told = self.train_step(self.state, moved, self.resident)
            each.append(told)
        if len(each) == 1:
            return each[0]
        return jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)

    def _validate(self, step: int, progress: Progress) -> None:
        """Scores the validation split, adds a line to the log and keeps the best weights."""
        config, weights = self.config, self.state.weights
        predictions, loss = evaluate.predict(
            self.run, self.predict_step, weights, self.splits["val"], self.held_out["val"]
        )
        scores = evaluate.score(self.run, "val", predictions, loss)
        self._write_scores(step, scores)
        bare = {name.removeprefix("val/"): value for name, value in scores.items()}
        if warning := diagnosis.collapsed(bare, self.run.points.names, config, step):
            tqdm.write(warning)
        train_loss = float(losses.mean(self.state.loss_sum, self.state.loss_weight))
        log = self.meta["log"]
        log.append(
            {
                "epoch": evaluate.epochs(config, len(self.splits["train"]), step),
                "step": step,
                "train_loss": train_loss,
                "val_loss": loss if math.isfinite(loss) else None,
            }
        )
        zero = jax.tree.map(jnp.zeros_like, (self.state.loss_sum, self.state.loss_weight))
        self.state = dataclasses.replace(self.state, loss_sum=zero[0], loss_weight=zero[1])
        metric = self.best_metric
        value, best = scores[metric], self.meta["best"]
        if best is None or metrics.better(value, best["value"], metric):
            self.meta["best"] = {"step": step, "value": value}
            self.best.save(step, weights, self.meta)
        if config.eval.sheet_examples and (
            step == self.steps or len(log) == 1 or len(log) % config.eval.sheet_every_evals == 0
        ):
            self._sheet(step)
        progress.validated(log[-1], metric, value)

    def _sheet(self, step: int) -> None:
        """Draws the first validation pictures and keeps their maps."""
        batch = next(iter(batching.eval_batches(self.splits["val"], self.config)))
        moved = batching.to_devices(batch, state_lib.sharded(self.run.mesh))
        looked = self.look_step(self.state.weights, moved["image"])
        n = min(self.config.eval.sheet_examples, int(batch["_mask"].sum()))
        output, predicted = (processes.whole(array)[:n] for array in looked)
        if not processes.is_first():
            return
        records = self.splits["val"].take(slice(n))
        maps = None if output.ndim == 3 else output
        if maps is not None:
            with workdir.replacing(self.folder / "heatmaps" / f"{step:07d}.npz") as temporary:
                np.savez_compressed(temporary, ids=records.ids.astype(str), heatmaps=maps)
        picture = sheet.draw(
            batch["image"][:n],
            maps,
            predicted,
            batch["keypoints"][:n],
            records.labelled,
            records.points,
            f"{self.config.model.name}, validation, step {step}",
        )
        sheet.save(self.folder / "figures" / f"val_{step:07d}.png", picture)
        self.writer.write_images(step, {"val/sheet": picture[None]})

    def _finish(self) -> dict[str, float]:
        """Scores the best checkpoint on every held-out split, and writes the results."""
        weights = self.best.restore(
            checkpoint.shapes(
                self.state.weights, state_lib.divided(self.run.mesh, self.state.weights)
            ),
            self.meta["best"]["step"],
            self.state.frozen,
        )
        scores: dict[str, float] = {}
        for name, batches in self.held_out.items():
            found, loss = evaluate.predict(
                self.run, self.predict_step, weights, self.splits[name], batches
            )
            scores |= evaluate.score(self.run, name, found, loss)
            if processes.is_first():
                path = self.folder / "predictions" / f"{name}.parquet"
                prediction_table.save(path, found, self.run.points.names, self.config.eval.csv)
        self._write_scores(self.steps, scores)
        if processes.is_first():
            evaluate.save_metrics(self.folder / workdir.METRICS, scores)
        return scores

    def _write_scores(self, step: int, scores: dict[str, float]) -> None:
        """Passes on what could be measured."""
        self.writer.write_scalars(step, {k: v for k, v in scores.items() if math.isfinite(v)})

    def _forget_metrics(self) -> None:
        if processes.is_first():
            (self.folder / workdir.METRICS).unlink(missing_ok=True)

    def _write_log(self) -> None:
        if not processes.is_first():
            return
        log = {self.config.model.name: self.meta["log"]}
        workdir.write_json(self.folder / workdir.TRAINING_LOG, log)

    def _evaluation_is_due(self, step: int) -> bool:
        return evaluate.is_due(self.config, len(self.splits["train"]), step, self.steps)

    def _save_is_due(self, step: int) -> bool:
        every = self.config.train.save_every_steps
        return bool(every) and step % every == 0

    def _out_of_time(self) -> bool:
        hours = self.config.train.max_hours
        return hours > 0 and time.monotonic() - self.started > 3600 * hours

    def _leaves_after(self, step: int) -> bool:
        """Says whether to save and stop after a step: all processes do, or none."""
        leaves = self.stop_asked or self._out_of_time()
        if not processes.are_several():
            return leaves
        return self.meetings.are_at(step) and self.meetings.any_says(leaves)

    def _ask_to_stop(self) -> None:
        self.stop_asked = True

    def _check_finite(self, last: int, told: step_lib.Told, rows: list[np.ndarray]) -> None:
        """Stops the run at a loss or update that is not finite, before it is saved.

        Args:
          last: of the steps.
          told: by them, [n] if several.
          rows: of the records in the batch of each.
        """
        finite = np.atleast_1d(told.finite)
        if finite.all():
            return
        which = int(np.argmin(finite))
        step, loss = last - len(rows) + 1 + which, np.atleast_1d(told.loss)[which]
        ids = ", ".join(self.splits["train"].ids[rows[which]])
        saved = self.latest.step()
        kept = f"The last good checkpoint is of step {saved}" if saved else "There is no checkpoint"
        raise UserError(
            f"Step {step}, with the loss {float(loss)}, leads to numbers that are not finite. "
            f"{kept} in {self.latest.folder}. Try a lower optim.learning_rate or "
            f"optim.clip_norm=1. The batch held: {ids}."
        )


@contextlib.contextmanager
def asked_to_stop(action: Callable[[], None]) -> Iterator[None]:
    """Calls a function at SIGTERM or Ctrl-C, inside the block; the second one is obeyed at once."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number, _):
        signal.signal(number, previous[number])
        action()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

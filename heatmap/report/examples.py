"""Pictures of a report: reads the data again and runs the models, for a few examples only."""

import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from heatmap import evaluate, geometry, targets
from heatmap import run as run_lib
from heatmap.checkpoint import LATEST, Checkpoints
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.losses import LOSSES
from heatmap.report import budget
from heatmap.report.findings import (
    BOTH_WRONG,
    FIRST_ONLY,
    SECOND_ONLY,
    Budget,
    Comparison,
    Example,
    Gallery,
    Method,
    Stage,
)

_SAMPLES = 6
_CASES = 6  # pictures of each group of failures
_STAGES = 6  # moments of training
_STAGE_PICTURES = 2


@dataclasses.dataclass(frozen=True)
class Source:
    """The data of one method.

    Attributes:
      records: by split, `input_pipeline.Records`.
      config: the run's, with `data.root` where the data are now.
    """

    records: dict[str, Any]
    config: Config


def open_sources(methods: Sequence[Method], root: str = "") -> tuple[Source, ...]:
    """Reads the data of each method, once where they are the same.

    Args:
      methods: finished runs.
      root: where the data are now, if they have moved.

    Raises:
      UserError: if the data are not there, or have changed since a run was trained.
    """
    import input_pipeline

    read: dict[Any, Any] = {}
    sources = []
    for method in methods:
        data = dataclasses.replace(method.config.data, root=root or method.config.data.root)
        if data not in read:
            read[data] = input_pipeline.load(data)
        records, split = read[data]
        meta = Checkpoints(method.folder, LATEST).meta()
        evaluate.check_split(method.folder, meta, split.sha256)
        parts = {name: records.take(rows) for name, rows in split.rows.items()}
        sources.append(Source(parts, dataclasses.replace(method.config, data=data)))
    return tuple(sources)


def affines(method: Method, source: Source, split: str) -> np.ndarray:
    """Returns input_from_original [N, 3, 3] of a method's rows."""
    from input_pipeline import batching

    records = source.records[split]
    return batching.eval_affines(records, source.config)[_places(method, records)]


def budgets(
    methods: Sequence[Method], sources: Sequence[Source], split: str, order: str, threshold: float
) -> tuple[Budget, ...]:
    """Measures the error budget of each method; see `budget.measure`."""
    return tuple(
        found
        for method, source in zip(methods, sources, strict=True)
        for found in budget.measure(method, affines(method, source, split), order, threshold)
    )


def gallery(comparison: Comparison, sources: Sequence[Source]) -> Gallery:
    """Chooses examples and looks at them: some from all, the worst failures, stages of training.

    Args:
      comparison: of methods.
      sources: their data, in the same order.
    """
    count = len(comparison.images)
    samples = np.unique(np.linspace(0, count - 1, min(_SAMPLES, count)).round().astype(int))
    chosen = {
        (found.first, found.second, group): _worst_rows(found.cases[group])
        for found in comparison.failures
        for group in (FIRST_ONLY, SECOND_ONLY, BOTH_WRONG)
    }
    rows = sorted({*map(int, samples), *(row for some in chosen.values() for row in some)})
    seen = look(comparison.methods, sources, comparison.split, rows)
    return Gallery(
        samples=tuple(seen[int(row)] for row in samples),
        failures={key: tuple(seen[row] for row in some) for key, some in chosen.items()},
        stages=tuple(
            stage
            for method, source in zip(comparison.methods, sources, strict=True)
            for stage in stages(method, source)
        ),
    )


def _worst_rows(cases) -> list[int]:
    return list(dict.fromkeys(case.row for case in cases))[:_CASES]


def look(
    methods: Sequence[Method], sources: Sequence[Source], split: str, rows: Sequence[int]
) -> dict[int, Example]:
    """Returns pictures, points and maps of some examples, by row.

    Args:
      methods: with the same rows.
      sources: their data, in the same order.
      split: on which they were scored.
      rows: of the methods' predictions.
    """
    first = methods[0]
    seen = [_seen(m, s, split, rows) for m, s in zip(methods, sources, strict=True)]
    examples = {}
    for i, row in enumerate(rows):
        to_picture = seen[0].affines[i]
        boxes = []
        for method, part in zip(methods, seen, strict=True):
            box = geometry.image_box(method.config.data.image_size).reshape(2, 2)
            original = geometry.apply(geometry.invert(part.affines[i]), box)
            boxes.append(geometry.apply(to_picture, original).ravel())
        examples[row] = Example(
            row=row,
            id=str(first.predictions.ids[row]),
            instance=int(first.predictions.instances[row]),
            picture=seen[0].pictures[i],
            truth=geometry.apply(to_picture, _labelled(first, row)),
            predicted=np.stack(
                [geometry.apply(to_picture, m.predictions.predicted[row]) for m in methods]
            ),
            maps=tuple(None if part.maps is None else part.maps[i] for part in seen),
            boxes=np.stack(boxes),
        )
    return examples


def _labelled(method: Method, row: int) -> np.ndarray:
    known = method.predictions.weight[row, :, None] > 0
    return np.where(known, method.predictions.truth[row], np.nan)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What one method sees of n examples, and the maps that it makes of them."""

    pictures: np.ndarray  # [n, H, W, C] uint8
    affines: np.ndarray  # [n, 3, 3]
    maps: np.ndarray | None  # [n, h, w, K]


def _seen(method: Method, source: Source, split: str, rows: Sequence[int]) -> _Seen:
    """Runs a method on some rows; one that gives coordinates is not run."""
    config = source.config
    records = source.records[split]
    places = _places(method, records)[list(rows)]
    pictures, wanted, affines_of = inputs(records, config, places)
    maps = []
    if gives_maps(config):
        run = run_lib.open_run(method.folder, config)
        look_step = evaluate.make_look_step(run)
        with jax.set_mesh(run.mesh):
            maps = [np.asarray(look_step(run.weights, pixels)[0]) for pixels in pictures]
    return _Seen(
        pictures=np.concatenate(pictures)[wanted],
        affines=affines_of,
        maps=shown(np.concatenate(maps)[wanted], config) if maps else None,
    )


def inputs(
    records, config: Config, places: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Makes what a network is given of a few records.

    Args:
      records: `input_pipeline.Records` of a split.
      config: of the run.
      places: [n] of the records.

    Returns:
      (batches of pictures, uint8 [B, H, W, C]; [n], where they stand when the batches are joined;
      their input_from_original [n, 3, 3]).
    """
    from input_pipeline import batching

    # How a picture is cropped depends on whether it has other instances: these come along.
    together = np.flatnonzero(np.isin(records.ids, records.ids[places]))
    wanted = np.searchsorted(together, places)
    some = records.take(together)
    pictures = [batch["image"] for batch in batching.eval_batches(some, config)]
    return pictures, wanted, batching.eval_affines(some, config)[wanted]


def gives_maps(config: Config) -> bool:
    """Says whether a run's model gives maps rather than coordinates."""
    return choose(LOSSES, config.loss.name, "loss.name").trains != "coordinates"


def shown(maps: np.ndarray, config: Config) -> np.ndarray:
    """Makes raw maps [..., h, w, K] ready to show: float32 in [0, 1], as `Example` says."""
    if choose(LOSSES, config.loss.name, "loss.name").trains == "peak":
        return np.clip(maps / targets.peak(config.targets), 0.0, 1.0).astype(np.float32)
    return np.exp(maps - maps.max(axis=(-3, -2), keepdims=True)).astype(np.float32)


def _by_largest(maps: np.ndarray) -> np.ndarray:
    peaks = maps.max(axis=(-3, -2), keepdims=True)
    return np.divide(maps, peaks, out=np.zeros_like(maps), where=peaks > 0)


def _places(method: Method, records) -> np.ndarray:
    """Returns [N], where a method's rows stand in the records of its split.

    Raises:
      UserError: if one is not there.
    """
    keys = zip(records.ids.astype(str), records.instances, strict=True)
    place = {(str(name), int(instance)): i for i, (name, instance) in enumerate(keys)}
    predictions = method.predictions
    wanted = zip(predictions.ids, predictions.instances, strict=True)
    try:
        return np.array([place[str(name), int(instance)] for name, instance in wanted])
    except KeyError as error:
        raise UserError(
            f"The data have no {error.args[0][0]!r}, which {method.folder} has predicted: restore "
            "the data, or score the run anew with heatmap.evaluate."
        ) from error


def stages(method: Method, source: Source) -> tuple[Stage, ...]:
    """Sets the maps that a run kept while it trained beside their validation pictures.

    Args:
      method: perhaps without any.
      source: its data.

    Raises:
      UserError: if a file of maps is damaged.
    """
    from input_pipeline import batching

    files = sorted((method.folder / "heatmaps").glob("*.npz"))
    if not files or "val" not in source.records:
        return ()
    # Maps change by factors of steps: most of it has happened in the first of many epochs.
    steps = np.array([int(file.stem) for file in files])
    wanted = np.geomspace(steps[0], steps[-1], _STAGES)
    nearest = np.abs(np.log(steps / wanted[:, None])).argmin(1)
    files = [files[i] for i in np.unique(nearest)]
    kept = [_kept(file) for file in files]
    count = min(_STAGE_PICTURES, *(len(maps) for maps in kept))
    batch = next(iter(batching.eval_batches(source.records["val"], source.config)))
    records = source.records["val"].take(slice(count))
    truth = np.where(records.labelled[..., None], batch["keypoints"][:count], np.nan)
    return tuple(
        Stage(
            method=method.name,
            id=str(records.ids[n]),
            picture=batch["image"][n],
            truth=truth[n],
            steps=tuple(int(file.stem) for file in files),
            maps=_by_largest(shown(np.stack([maps[n] for maps in kept]), source.config)),
        )
        for n in range(count)
    )


def _kept(file: pathlib.Path) -> np.ndarray:
    try:
        with np.load(file) as arrays:
            return arrays["heatmaps"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} is no file of heatmaps ({error}); remove it.") from error

"""Finished runs, read from the files of their workdirs and brought to the same rows."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from heatmap import checkpoint, fields, metrics, prediction_table, workdir
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.predictions import Predictions, interchange, point_errors
from heatmap.report.findings import LogLine, Method, Setting

_SAME_PIXEL = 1e-3  # labels of one file agree to far less, those of another data set do not


def open_method(folder: pathlib.Path, split: str, name: str = "") -> Method:
    """Reads what a run left behind; neither data nor weights are needed.

    Args:
      folder: a workdir whose run has finished.
      split: 'test', 'val' or 'train'.
      name: to call it by; its folder's name by default.

    Raises:
      UserError: if the folder is no workdir, the split was not scored, or a file is damaged.
    """
    config = workdir.read_config(folder)
    meta = checkpoint.Checkpoints(folder, checkpoint.LATEST).meta()
    points = KeypointSet.from_json(meta["points"])
    fields.choose(dict.fromkeys(meta["splits"]), split, "--split")
    path = folder / "predictions" / f"{split}.parquet"
    predictions = prediction_table.load(path, points.names)
    scores = workdir.read_metrics(folder)
    name = name or folder.absolute().name
    return describe(name, folder, config, points, scores, read_log(folder, config), predictions)


def describe(
    name: str,
    folder: pathlib.Path,
    config: Config,
    points: KeypointSet,
    scores: dict,
    log: Sequence[LogLine],
    predictions: Predictions,
) -> Method:
    """Measures the errors and reference lengths of predictions; the arguments are `Method`'s."""
    return Method(
        name=name,
        folder=folder,
        config=config,
        points=points,
        scores=scores,
        log=tuple(log),
        predictions=predictions,
        errors=point_errors(predictions),
        unordered_errors=point_errors(interchange(predictions, points)),
        reference=metrics.bbox_reference(predictions, points),
    )


def read_log(folder: pathlib.Path, config: Config) -> tuple[LogLine, ...]:
    """Reads the training log of a workdir, empty if there is none.

    Raises:
      UserError: if it is damaged.
    """
    path = folder / workdir.TRAINING_LOG
    if not path.is_file():
        return ()
    try:
        lines = workdir.read_json(path, "remove it")[config.model.name]
        return tuple(
            LogLine(
                int(line["epoch"]),
                int(line["step"]),
                float(line["train_loss"]),
                math.nan if line["val_loss"] is None else float(line["val_loss"]),
            )
            for line in lines
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is no training log of ours ({error!r}); remove it.") from error


def open_methods(folders: Sequence[pathlib.Path], split: str) -> tuple[Method, ...]:
    """Opens several runs and brings them to the same rows.

    Raises:
      UserError: as `open_method` and `align` do.
    """
    methods = [
        open_method(folder, split, name)
        for folder, name in zip(folders, names_of(folders), strict=True)
    ]
    return align(methods)


def names_of(folders: Sequence[pathlib.Path]) -> list[str]:
    """Names folders by as many of their last parts as it takes to tell them apart.

    Raises:
      UserError: if a folder is given twice.
    """
    paths = [folder.absolute().resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError(f"A folder is given twice: {', '.join(map(str, folders))}.")
    names = [path.name for path in paths]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def align(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Puts the rows of all methods into the order of the first.

    Args:
      methods: of one split of the same data.

    Raises:
      UserError: if points, examples, groups or labels are not the same.
    """
    first = methods[0]
    places = _places(first)
    aligned = [first]
    for other in methods[1:]:
        if other.points != first.points:
            raise UserError(
                f"{first.folder} and {other.folder} do not predict the same points "
                f"({', '.join(first.points.names)}; {', '.join(other.points.names)}, or what they "
                "mean): compare runs on the same data."
            )
        theirs = _places(other)
        if theirs.keys() != places.keys():
            missing = sorted(places.keys() ^ theirs.keys())[0]
            raise UserError(
                f"{first.folder} and {other.folder} were not scored on the same examples (only one "
                f"of them has {missing[0]!r}): compare runs with the same data and split."
            )
        rows = np.array([theirs[key] for key in places])
        same = describe(
            other.name,
            other.folder,
            other.config,
            other.points,
            dict(other.scores),
            other.log,
            other.predictions.take(rows),
        )
        _check_labels(first, same)
        aligned.append(same)
    return tuple(aligned)


def _places(method: Method) -> dict[tuple[str, int], int]:
    p = method.predictions
    keys = [(str(i), int(n)) for i, n in zip(p.ids, p.instances, strict=True)]
    return {key: row for row, key in enumerate(keys)}


def _check_labels(first: Method, other: Method) -> None:
    ours, theirs = first.predictions, other.predictions
    same = (ours.weight > 0) == (theirs.weight > 0)
    with np.errstate(invalid="ignore"):  # what is not labelled is NaN
        moved = np.abs(ours.truth - theirs.truth).max(axis=-1) > _SAME_PIXEL
    wrong = ~same | ((ours.weight > 0) & moved) | (ours.groups != theirs.groups)[:, None]
    if wrong.any():
        row = int(np.argmax(wrong.any(axis=1)))
        raise UserError(
            f"{first.folder} and {other.folder} have other labels or groups for "
            f"{str(ours.ids[row])!r}: compare runs on the same data."
        )


def settings_that_differ(methods: Sequence[Method]) -> tuple[Setting, ...]:
    """Lists the config fields in which methods differ, logging apart."""
    flat = [fields.flatten(dataclasses.asdict(method.config)) for method in methods]
    return tuple(
        Setting(name, tuple(str(values[name]) for values in flat))
        for name in flat[0]
        if not name.startswith("log.") and len({repr(values[name]) for values in flat}) > 1
    )

"""The file of a split's predictions: one row per instance and point, as Parquet or CSV."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from heatmap import workdir
from heatmap.errors import UserError
from heatmap.predictions import Predictions

_TEXT = ("id", "group", "point")
_NUMBERS = ("instance", "x", "y", "score", "entropy", "x_true", "y_true", "weight")


def save(path: pathlib.Path, predictions: Predictions, names, csv: bool) -> None:
    """Writes one row per instance and point, as Parquet and on request as CSV beside it.

    Args:
      path: ends in `.parquet`.
      predictions: of one split.
      names: of the K points.
      csv: whether to write the CSV too.
    """
    count, k = predictions.weight.shape
    labelled = predictions.weight > 0
    truth = np.where(labelled[..., None], predictions.truth, np.nan)
    columns = {
        "id": np.repeat(predictions.ids.astype(str), k),
        "instance": np.repeat(predictions.instances, k).astype(np.int32),
        "group": np.repeat(predictions.groups.astype(str), k),
        "point": np.tile(np.array(names, dtype=str), count),
        "x": predictions.predicted[..., 0].ravel(),
        "y": predictions.predicted[..., 1].ravel(),
        "score": predictions.score.ravel().astype(np.float32),
        "entropy": predictions.entropy.ravel().astype(np.float32),
        "x_true": truth[..., 0].ravel(),
        "y_true": truth[..., 1].ravel(),
        "weight": predictions.weight.ravel().astype(np.float32),
    }
    table = pa.table(columns)
    with workdir.replacing(path) as temporary:
        pa.parquet.write_table(table, temporary)
    if csv:
        with workdir.replacing(path.with_suffix(".csv")) as temporary:
            pa.csv.write_csv(table, temporary)


def load(path: pathlib.Path, names: tuple[str, ...]) -> Predictions:
    """Reads predictions back.

    Args:
      path: a Parquet file that `save` wrote.
      names: of the K points.

    Returns:
      The predictions, in the order of the file. What it does not hold is NaN or '': `height`,
      `boxes`, `areas`, `sizes`, `px_per_cm`, `species` and `dataset`.

    Raises:
      UserError: if there is no such file, or it is not one of these points.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: let the run finish, or run heatmap.evaluate on it.")
    try:
        table = pa.parquet.read_table(path, columns=[*_TEXT, *_NUMBERS])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is no file of predictions ({reason}); score it anew.") from error
    k = len(names)
    text = {name: np.array(table[name].to_pylist(), dtype=str) for name in _TEXT}
    whole = table.num_rows > 0 and table.num_rows % k == 0
    if not whole or (text["point"].reshape(-1, k) != np.array(names)).any():
        raise UserError(
            f"{path} does not hold the points {', '.join(names)} for each instance; score it anew."
        )
    numbers = {name: table[name].to_numpy().reshape(-1, k) for name in _NUMBERS}
    n = table.num_rows // k
    unknown, blank = np.full((n, k), np.nan), np.full(n, "")
    return Predictions(
        ids=text["id"][::k],
        instances=numbers["instance"][:, 0],
        groups=text["group"][::k],
        predicted=np.stack([numbers["x"], numbers["y"]], axis=-1),
        score=numbers["score"].astype(np.float64),
        entropy=numbers["entropy"].astype(np.float64),
        height=unknown,
        truth=np.stack([numbers["x_true"], numbers["y_true"]], axis=-1),
        weight=numbers["weight"].astype(np.float64),
        boxes=np.full((n, 4), np.nan),
        areas=np.full(n, np.nan),
        sizes=np.full((n, 2), np.nan),
        px_per_cm=np.full(n, np.nan),
        species=blank,
        dataset=blank,
    )

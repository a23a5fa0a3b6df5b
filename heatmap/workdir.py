"""The files of a workdir, and how they are written: whole or not at all.

config.json                    the resolved config
metrics.json                   scores of the best checkpoint, flat
training_log.json              {model: [{epoch, step, train_loss, val_loss}]}
predictions/{split}.parquet    one row per instance and point
heatmaps/{step}.npz            predicted maps of a few fixed pictures
figures/                       validation sheets
tensorboard/                   event files
checkpoints/{latest,best}      Orbax
"""

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from heatmap import config as config_lib
from heatmap.config import Config
from heatmap.errors import UserError

CONFIG, METRICS, TRAINING_LOG = "config.json", "metrics.json", "training_log.json"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path` that takes its place when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: pathlib.Path, values: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: pathlib.Path, remedy: str, kind: type = dict) -> Any:
    """Reads a JSON file that `write_json` wrote.

    Args:
      path: of the file.
      remedy: what to do if it is damaged, the end of a sentence.
      kind: what it must hold, dict or list.

    Raises:
      UserError: naming the file, if it cannot be read, is no JSON or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or beyond Python's limits
        raise UserError(f"{path} is not valid JSON ({error}); {remedy}.") from error
    if not isinstance(values, kind):
        wanted = "a JSON object {...}" if kind is dict else "a JSON list [...]"
        raise UserError(f"{path} must hold {wanted}, not {str(values)[:60]!r}; {remedy}.")
    return values


def check(workdir: pathlib.Path, config: Config) -> None:
    """Finds that a folder can hold this run; writes nothing.

    A start that failed before its first checkpoint leaves nothing to lose, so that its settings
    may be mended and the same folder used again.

    Args:
      workdir: new, empty, or of an earlier start of the same run.
      config: the resolved config.

    Raises:
      UserError: if the folder holds something else or the run of another config, naming the
        fields that differ.
    """
    for place in (workdir, *workdir.absolute().parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file, so --workdir={workdir} cannot be a folder there.")
    path = workdir / CONFIG
    if path.exists():
        if not any((workdir / "checkpoints").glob("*/*/_CHECKPOINT_METADATA")):
            return
        earlier = read_config(workdir)
        changed = config_lib.differences(earlier, config, ignore=config_lib.RESUMABLE)
        if changed:
            raise UserError(
                f"{workdir} holds a run of another config ({'; '.join(changed)}); choose another "
                "--workdir or the same settings."
            )
    elif workdir.is_dir() and any(p for p in workdir.iterdir() if not p.name.startswith(".config")):
        raise UserError(
            f"{workdir} is not empty and holds no {CONFIG}, so it is no workdir of ours; choose "
            "another --workdir."
        )


@contextlib.contextmanager
def locked(workdir: pathlib.Path, patience: float = 30.0) -> Iterator[None]:
    """Keeps other processes out of a folder: two runs in one would spoil each other's checkpoints.

    The lock is the operating system's and ends with the process, however that ends.

    Args:
      workdir: made if it does not exist, and removed again if nothing was written to it.
      patience: seconds to wait for another process, which may be saving and about to leave.

    Raises:
      UserError: if the other process stays, or a file is where the folder would be.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{workdir} cannot be a folder: a file is in the way.") from error
    handle = os.open(workdir, os.O_RDONLY)
    try:
        _take_lock(handle, workdir, time.monotonic() + patience)
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty, as it should be
            workdir.rmdir()


def _take_lock(handle: int, workdir: pathlib.Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Another process is at work in {workdir}; wait for it, stop it, or choose "
                    "another folder."
                ) from error
            time.sleep(0.5)
        except OSError:
            return  # some network file systems know no locks


def claim(workdir: pathlib.Path, config: Config) -> None:
    """Makes a folder this run's own: writes config.json, before any other file."""
    write_text(workdir / CONFIG, config.to_json())


def read_config(workdir: pathlib.Path) -> Config:
    """Reads the config of a run.

    Raises:
      UserError: if the folder is no workdir, or the file is damaged.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(f"{workdir} holds no {CONFIG}; give the --workdir of a training run.")
    values = read_json(path, "put it back from a copy")
    try:
        return config_lib.from_mapping(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_metrics(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads metrics.json, or returns nothing if it is not there yet.

    Raises:
      UserError: if it is damaged.
    """
    path, remedy = workdir / METRICS, "delete it to score anew"
    if not path.is_file():
        return {}
    scores = read_json(path, remedy)
    for name, value in scores.items():
        if value is not None and not _is_number(value):
            raise UserError(f"{path}: {name!r} must be a number, not {str(value)[:60]}; {remedy}.")
    return scores


def _is_number(value: Any) -> bool:
    """Says whether a JSON value is a number that a float can hold."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)

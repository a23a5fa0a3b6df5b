"""Several processes that train one model: how they meet, what they agree on, and who writes.

Each process drives the devices of its own machine, reads its share of every batch and takes the
same steps. Only the first writes files other than checkpoints, and prints.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax._src.clusters import cloud_tpu_cluster  # JAX asks it, and tells nobody
from jax.experimental import multihost_utils

from heatmap.errors import UserError

AUTO, NONE = "auto", "none"
# How many processes a launcher says that it has started; JAX asks the same launchers for the rest.
# Slurm names a job's tasks also where `srun` has not started them; those of a step are running.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# The hosts of a slice of TPUs on GKE, where JAX looks for them, and how many slices there are.
_TPU_HOSTS, _TPU_SLICES = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"), "MEGASCALE_NUM_SLICES"
# An indexed Job of Kubernetes numbers its pods, but does not say how many there are, nor whether
# they belong together.
_KUBERNETES, _POD = "KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"
# Failures that are of this process alone, whatever the others do.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
_SEEN_SECONDS = 60.0  # after which a network file system shows a new file everywhere
# So often several processes ask one another whether to stop, each time for a millisecond.
_MEET_SECONDS, _MEET_STEPS = 5.0, 100
_SHUTDOWN_SECONDS = 30  # that a process waits for the others when it ends


def join(coordinator: str, count: int, index: int | None = None) -> None:
    """Meets the other processes, if there are any; to be called before JAX looks for devices.

    Args:
      coordinator: 'HOST:PORT' of the first process; 'auto' to ask Slurm, Open MPI, Cloud TPU or
        Kubernetes; '' to do so only where the environment speaks of several processes; 'none' for
        never.
      count: of all processes, where `coordinator` is an address.
      index: of this one, from 0; None for that of its pod in an indexed Job of Kubernetes, else 0.

    Raises:
      UserError: for numbers that make no sense, or if the others cannot be reached.
    """
    if coordinator in ("", AUTO, NONE):
        if count != 1 or index:
            raise UserError("--processes and --process need --coordinator=HOST:PORT as well.")
        if coordinator == AUTO or (not coordinator and announced() > 1):
            _initialise()
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: say HOST:PORT of the first process.")
    if index is None:
        index = _of_pod()
    if not 0 <= index < count:
        raise UserError(f"--process={index} is none of {count}; they are numbered from 0.")
    if count > 1:
        _initialise(coordinator_address=coordinator, num_processes=count, process_id=index)


def are_several() -> bool:
    """Says whether there are other processes."""
    return jax.process_count() > 1


def expected(coordinator: str, count: int) -> int:
    """Returns how many processes `join` will meet, itself among them."""
    return announced() if coordinator in ("", AUTO) else max(1, count)


def announced() -> int:
    """Returns how many processes the environment says that a launcher has started, 1 if none."""
    counts = [_number(name) for name in _COUNTS]
    hosts = next((os.environ[name] for name in _TPU_HOSTS if name in os.environ), None)
    if hosts is None:
        counts.append(_of_tpu_vms())
    else:
        counts.append(len(hosts.split(",")) * max(1, _number(_TPU_SLICES)))
    return max(*counts, 1)


def _number(name: str) -> int:
    """Reads a variable of the environment, 0 if it is no number."""
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else 0


@functools.cache
def _of_tpu_vms() -> int:
    """Asks the metadata server of a Cloud TPU VM for the size of its slices, as JAX will."""
    try:
        cluster = cloud_tpu_cluster.GceTpuCluster
        return cluster.get_process_count() if cluster.is_env_present() else 0
    except (OSError, RuntimeError, ImportError):  # there is no such server
        return 0


def _of_pod() -> int:
    """Returns the number of this pod in an indexed Job of Kubernetes, 0 elsewhere."""
    return _number(_POD) if _KUBERNETES in os.environ else 0


def is_first() -> bool:
    """Says whether this process writes the files that are written once."""
    return jax.process_index() == 0


def any_says(flag: bool) -> bool:
    """Says whether the flag is set in any process; all must ask at the same step."""
    return bool(_largest(flag)[0])


def _largest(*values: float) -> np.ndarray:
    """Returns the largest of what the processes say, for each value; all must ask."""
    mine = np.array(values, np.float32)
    return multihost_utils.process_allgather(mine).max(axis=0) if are_several() else mine


class Meetings:
    """The steps after which several processes ask one another whether to stop."""

    def __init__(self, step: int):
        """Meets for the first time after the step that follows `step`."""
        self._last, self._next, self._met = step, step + 1, time.monotonic()

    def are_at(self, step: int) -> bool:
        """Says whether there are others, and they meet after this step."""
        return are_several() and step == self._next

    def any_says(self, flag: bool) -> bool:
        """Asks them, and arranges the next meeting some seconds ahead by the slowest clock."""
        now = time.monotonic()
        said, seconds = _largest(flag, (now - self._met) / (self._next - self._last))
        ahead = int(np.clip(_MEET_SECONDS / max(seconds, 1e-3), 1, _MEET_STEPS))
        self._last, self._next, self._met = self._next, self._next + ahead, now
        return bool(said)


def agree(told: Mapping[str, str]) -> None:
    """Refuses to go on unless all processes say the same; all must ask.

    Started with other settings or other data, each would compute a step of its own, and parameters
    that all take for the same would drift apart without a word.

    Args:
      told: what must be the same, by its name.

    Raises:
      UserError: in every process, naming what differs.
    """
    if not are_several():
        return
    hashes = [hashlib.sha256(text.encode()).digest() for text in told.values()]
    everyone = multihost_utils.process_allgather(np.array([[*one] for one in hashes], np.uint8))
    for name, (first, *others) in zip(told, everyone.swapaxes(0, 1), strict=True):
        if any((first != other).any() for other in others):
            raise UserError(
                f"The processes do not train the same run: {name} differs between them; start "
                "them with the same flags, on the same files and with one --workdir."
            )


def all_see(path: pathlib.Path) -> None:
    """Refuses to go on unless every process finds a file that the first has written; all must ask.

    Raises:
      UserError: in every process.
    """
    deadline = time.monotonic() + (_SEEN_SECONDS if are_several() else 0)
    any_says(False)  # it has been written by now
    while not path.is_file() and time.monotonic() < deadline:
        time.sleep(1)
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # or the answer of before may be given again
    if any_says(not path.is_file()):
        raise UserError(
            f"Not all processes see {path}, which the first has written: give them one --workdir, "
            "on a disk that all machines share."
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once, with a sentence and exit code 1, if another is lost in the block.

    A failure of its own, such as too little memory, passes as it is. Whatever the others still
    owe, a sum or a sign of life, fails at the next exchange; an ordinary exit would wait for them
    once more, and abort. A process that waits for the others to save is ended by JAX, with its own
    message, after they have given no sign of life for 100 seconds.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not are_several() or str(error).startswith(_OWN):
            raise
        reason = " ".join(str(error).split())
        print(
            f"Process {jax.process_index()} of {jax.process_count()} stops, because another is "
            f"lost or an exchange has failed ({reason:.200}). Start them again, also in "
            "another number: training goes on from the latest checkpoint.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def whole(array: jax.Array) -> np.ndarray:
    """Brings an array to the host that may be divided over the processes; all must ask."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _devices_of_slurm() -> list[int] | None:
    """Gives the one task of a node all of its GPUs: JAX would take one for each task."""
    names = ("STEP_NUM_TASKS", "STEP_NUM_NODES", "GPUS_ON_NODE")
    tasks, nodes, gpus = (os.environ.get(f"SLURM_{name}", "") for name in names)
    alone = tasks and tasks == nodes
    return list(range(int(gpus))) if alone and gpus.isdigit() else None


def _initialise(**settings) -> None:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Kubernetes environment detected")  # said below
            jax.distributed.initialize(
                local_device_ids=_devices_of_slurm(),
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
                **settings,
            )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        pods = _KUBERNETES in os.environ and "coordinator_address" not in settings
        instead = " or, for --coordinator=auto, install the package kubernetes" if pods else ""
        raise UserError(
            f"The processes cannot meet ({reason:.200}); give each --coordinator=HOST:PORT of the "
            f"first, --processes=N and its own --process=I{instead}."
        ) from error

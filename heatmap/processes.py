"""Several processes that train one model: how they meet, what they agree on, and who writes.

Each process drives the devices of its own machine, reads its share of every batch and takes the
same steps. Only the first writes files other than checkpoints, and prints.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from heatmap.errors import UserError

AUTO = "auto"
# How many processes a launcher says that it has started; JAX asks the same launchers for the rest.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_SHUTDOWN_SECONDS = 30  # that a process waits for the others when it ends


def join(coordinator: str, count: int, index: int) -> None:
    """Meets the other processes, if there are any; to be called before JAX looks for devices.

    Args:
      coordinator: 'HOST:PORT' of the first process; 'auto' to ask Slurm, Open MPI, Cloud TPU or
        GKE; '' to do so only where the environment speaks of several processes.
      count: of all processes, where `coordinator` is an address.
      index: of this one, from 0.

    Raises:
      UserError: for numbers that make no sense, or if the others cannot be reached.
    """
    if coordinator in ("", AUTO):
        if (count, index) != (1, 0):
            raise UserError("--processes and --process need --coordinator=HOST:PORT as well.")
        if coordinator == AUTO or _several():
            _initialise(local_device_ids=_devices_of_slurm())
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: say HOST:PORT of the first process.")
    if not 0 <= index < count:
        raise UserError(f"--process={index} is none of {count}; they are numbered from 0.")
    if count > 1:
        _initialise(coordinator_address=coordinator, num_processes=count, process_id=index)


def is_first() -> bool:
    """Says whether this process writes the files that are written once."""
    return jax.process_index() == 0


def any_says(flag: bool) -> bool:
    """Says whether the flag is set in any process; all must ask at the same step."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends this process at once, with a sentence and exit code 1, if another is lost in the block.

    Whatever the others still owe, a sum or a sign of life, then fails at the next exchange. An
    ordinary exit would wait for them once more, and abort.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())
        print(
            f"Process {jax.process_index()} of {jax.process_count()} stops, because another is "
            f"lost or an exchange has failed ({reason:.200}). Start them again, any number of "
            "them: training goes on from the latest checkpoint.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def whole(array: jax.Array) -> np.ndarray:
    """Brings an array to the host that may be divided over the processes; all must ask."""
    if jax.process_count() == 1:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def _several() -> bool:
    counts = [os.environ.get(name, "") for name in _COUNTS]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(hosts) > 1 or any(count.isdigit() and int(count) > 1 for count in counts)


def _devices_of_slurm() -> list[int] | None:
    """Gives the one task of a node all of its GPUs: JAX would take one for each task."""
    tasks, gpus = (os.environ.get(f"SLURM_{name}", "") for name in ("NTASKS", "GPUS_ON_NODE"))
    alone = tasks and tasks == os.environ.get("SLURM_NNODES")
    return list(range(int(gpus))) if alone and gpus.isdigit() else None


def _initialise(**settings) -> None:
    try:
        jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS, **settings)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"The processes cannot meet ({reason:.200}); give each --coordinator=HOST:PORT of the "
            "first, --processes=N and its own --process=I."
        ) from error

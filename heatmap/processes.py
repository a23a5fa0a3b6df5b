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

AUTO, NONE = "auto", "none"
# How many processes a launcher says that it has started; JAX asks the same launchers for the rest.
# Slurm names a job's tasks also where `srun` has not started them; those of a step are running.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Failures that are of this process alone, whatever the others do.
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
_SHUTDOWN_SECONDS = 30  # that a process waits for the others when it ends


def join(coordinator: str, count: int, index: int) -> None:
    """Meets the other processes, if there are any; to be called before JAX looks for devices.

    Args:
      coordinator: 'HOST:PORT' of the first process; 'auto' to ask Slurm, Open MPI, Cloud TPU or
        GKE; '' to do so only where the environment speaks of several processes; 'none' for never.
      count: of all processes, where `coordinator` is an address.
      index: of this one, from 0.

    Raises:
      UserError: for numbers that make no sense, or if the others cannot be reached.
    """
    if coordinator in ("", AUTO, NONE):
        if (count, index) != (1, 0):
            raise UserError("--processes and --process need --coordinator=HOST:PORT as well.")
        if coordinator == AUTO or (not coordinator and _announced()):
            _initialise()
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: say HOST:PORT of the first process.")
    if not 0 <= index < count:
        raise UserError(f"--process={index} is none of {count}; they are numbered from 0.")
    if count > 1:
        _initialise(coordinator_address=coordinator, num_processes=count, process_id=index)


def are_several() -> bool:
    """Says whether there are other processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Says whether this process writes the files that are written once."""
    return jax.process_index() == 0


def any_says(flag: bool) -> bool:
    """Says whether the flag is set in any process; all must ask at the same step."""
    if not are_several():
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array([flag]))))


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
            f"lost or an exchange has failed ({reason:.200}). Start them again, any number of "
            "them: training goes on from the latest checkpoint.",
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


def _announced() -> bool:
    """Says whether the environment speaks of several processes."""
    counts = [os.environ.get(name, "") for name in _COUNTS]
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return len(hosts) > 1 or any(count.isdigit() and int(count) > 1 for count in counts)


def _devices_of_slurm() -> list[int] | None:
    """Gives the one task of a node all of its GPUs: JAX would take one for each task."""
    names = ("STEP_NUM_TASKS", "STEP_NUM_NODES", "GPUS_ON_NODE")
    tasks, nodes, gpus = (os.environ.get(f"SLURM_{name}", "") for name in names)
    alone = tasks and tasks == nodes
    return list(range(int(gpus))) if alone and gpus.isdigit() else None


def _initialise(**settings) -> None:
    try:
        jax.distributed.initialize(
            local_device_ids=_devices_of_slurm(),
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            **settings,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"The processes cannot meet ({reason:.200}); give each --coordinator=HOST:PORT of the "
            "first, --processes=N and its own --process=I."
        ) from error

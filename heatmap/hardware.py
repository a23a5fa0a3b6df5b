"""What there is to compute on: peaks of accelerators, cores, and how a CPU's memory is kept."""

import ctypes
import os
import re
import resource
import sys
from collections.abc import Sequence
from typing import Any

# Dense bfloat16 operations per second of a device as JAX counts them, by words of its name; the
# first that fits. Volta and Turing have no bfloat16: theirs is float16.
_PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A30": 165e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "TPU7x": 1153.5e12,  # of one of the two cores, as below
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p?": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,  # of one of the two cores
    "TPU v2": 22.5e12,
}


def cpus() -> int:
    """Returns how many cores this process may use: those that Slurm, say, has given it."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def peak(devices: Sequence[Any]) -> float:
    """Returns the peak of all devices together, in bfloat16 operations per second.

    Args:
      devices: of JAX, all of one kind.

    Returns:
      0 where it is not known; a CPU's depends on its clock, and has to be measured.
    """
    kind = devices[0].device_kind
    known = (peak for name, peak in _PEAKS.items() if re.search(rf"\b{name}\b", kind))
    return len(devices) * next(known, 0.0)


def summary(devices: Sequence[Any], processes: int) -> str:
    """Says what a run computes on: '16 × NVIDIA H200, of 2 processes'.

    Args:
      devices: of JAX, all of one kind.
      processes: that they belong to.
    """
    of = f", of {processes} processes" if processes > 1 else ""
    return f"{len(devices)} × {devices[0].device_kind}{of}"


def kept_memory() -> str:
    """Returns settings of glibc's malloc that suit a step, as GLIBC_TUNABLES takes them.

    A step on a CPU asks for the same hundreds of megabytes each time. Left alone, glibc gives them
    back, and the kernel has to find and clear them again, in pages of 4 KB ('Memory' in
    docs/performance.md). So they are kept, in huge pages, and in no more heaps than there are cores
    to use them: more would hold more, and in fewer threads wait for one another. The few largest
    blocks, which hold all that a program works on, are mapped each for itself: cleared anew, but in
    huge pages, which costs little, where within the heap each small block that is put into their
    place would make it longer.
    """
    return (
        f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={cpus()}:"
        "glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=8589934592"
    )


def restart_with_kept_memory() -> None:
    """Starts the same command anew with `kept_memory`, where Linux has glibc.

    It reads the settings only when a process starts.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = kept_memory()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back_memory() -> None:
    """Gives the system what is free of the memory that is kept, where glibc keeps it.

    Compiling and scoring leave holes that the blocks of a step do not fit into, and that would be
    held in vain beside them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""What accelerators can do at most, as their makers say, and how a CPU's memory is best kept."""

import re
from collections.abc import Sequence
from typing import Any

# Dense bfloat16 operations per second of a device as JAX counts them, by words of its name; the
# first that fits. Volta and Turing have no bfloat16: theirs is float16.
_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p?": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,  # of one of the two cores
    "TPU v2": 22.5e12,
}

# A step on a CPU asks for the same hundreds of megabytes each time. Left alone, glibc gives them
# back, and the kernel clears them again in pages of 4 KB: a tenth of the time, and far more while
# other programs leave it no large stretches. So they are kept, in one heap of huge pages; only
# that of the first thread can be so large.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_threshold=1073741824:"
    "glibc.malloc.trim_threshold=8589934592"
)


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

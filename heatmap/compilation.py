"""Compiled programs, kept from one run to the next."""

import hashlib
import os
import pathlib
import platform
import warnings

import jax

from heatmap import caches

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_CPUINFO = pathlib.Path("/proc/cpuinfo")
_KIND_OF_CPU = ("model name", "flags", "Features", "CPU implementer", "CPU part")


def keep() -> None:
    """Lets JAX keep what it compiles, so that the next run of the same shapes starts sooner.

    The programs lie in `folder()`, a megabyte for each config, and may be deleted at any time.
    Where JAX_COMPILATION_CACHE_DIR is set, JAX follows its own settings; where the folder cannot be
    written, nothing is kept. To be called before the first program is compiled.
    """
    if _VARIABLE in os.environ:
        return
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(place, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    # A run compiles dozens of small programs beside the large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A program that cannot be kept, or was half written, is compiled anew: nothing to tell a user.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")


def folder() -> pathlib.Path:
    """Returns where compiled programs are kept: in ~/.cache/heatmap, or under XDG_CACHE_HOME.

    That is 'compiled-' and twelve hexadecimal digits for the kind of CPU.
    A program compiled for one kind of CPU may use instructions that another lacks, and JAX's own
    keys do not tell them apart; home folders are often shared by unequal machines.
    """
    return caches.folder() / f"compiled-{_cpu()}"


def _cpu() -> str:
    """Names the kind of CPU by twelve hexadecimal digits."""
    described = {platform.machine(), platform.processor()}
    if _CPUINFO.is_file():
        lines = _CPUINFO.read_text().splitlines()
        described |= {line for line in lines if line.startswith(_KIND_OF_CPU)}
    return hashlib.sha256("\n".join(sorted(described)).encode()).hexdigest()[:12]

"""How a CPU's memory is kept between steps."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from heatmap import hardware
from launch.jobs import ROOT

HELD = """
import json, pathlib, resource
from heatmap import hardware

def held():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6

hardware.restart_with_kept_memory()
"""
# Takes steps of configs/sigma2.py as `main.py` does, and tells of each the megabytes that are held
# after it, and how often the kernel had to give memory during it.
STEPS = f"""{HELD}
from heatmap import command_line, state

_, config = command_line.read(command_line.parser("steps", ""), [], "configs/sigma2.py")
state.divide_cpu(config.train.batch_size)
from benchmarks import step_jax

stepper, after, given = step_jax.Stepper(config), [], []
for _ in range(14):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    stepper.steps(1)
    given.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    after.append(held())
print(json.dumps([after, given]))
"""
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Blocks between which others lie that stay; tells the megabytes that are held before and after.
HOLES = f"""{HELD}
import numpy as np

blocks = [np.ones(500_000) for _ in range(100)]  # of 4 MB
del blocks[::2]
before = held()
hardware.give_back_memory()
print(json.dumps([before, held()]))
"""
# Tells how many heaps five times as many threads as cores have made, all at work at once.
HEAPS = f"""{HELD}
import ctypes, tempfile, threading

library = ctypes.CDLL(None)
together = threading.Barrier(5 * hardware.cpus())

def work():
    library.malloc(2000)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(together.parties)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.fopen.restype = ctypes.c_void_p
with tempfile.NamedTemporaryFile() as told:
    stream = ctypes.c_void_p(library.fopen(told.name.encode(), b"w"))
    library.malloc_info(0, stream)
    library.fclose(stream)
    print(told.read().count(b"<heap nr="))
"""


def told(folder: pathlib.Path, program: str, times: int = 1):
    """Runs a program that starts itself anew, and returns what it prints the last time."""
    (folder / "program.py").write_text(program)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, str(folder / "program.py")],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_memory_is_kept_and_does_not_grow_with_each_step(tmp_path):
    """The working memory of a step is 272 MB, of which the next one's may be there already."""
    held, given = told(tmp_path, STEPS, times=2)  # the first compiles, and leaves pieces behind
    assert max(held) - min(held[1:]) < 400
    if HUGE_PAGES.is_file() and "[never]" not in HUGE_PAGES.read_text():
        assert max(given[4:]) < 5_000  # 67,000 with glibc as it comes


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_what_is_free_of_kept_memory_can_be_given_back(tmp_path):
    before, after = told(tmp_path, HOLES)
    assert before - after > 150  # of 200 MB


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_each_core_has_a_heap_and_no_more(tmp_path):
    """In one heap, the threads of a run that has compiled wait for one another."""
    assert told(tmp_path, HEAPS) == hardware.cpus()

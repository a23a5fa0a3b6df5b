"""How a CPU's memory is kept between steps."""

import json
import os
import subprocess
import sys

import pytest

from launch.jobs import ROOT

# Takes steps of configs/sigma2.py as `main.py` does, and tells the megabytes it holds after each.
STEPS = """
import json, pathlib, sys
from heatmap import command_line, hardware, state

hardware.restart_with_kept_memory()
_, config = command_line.read(command_line.parser("steps", ""), [], "configs/sigma2.py")
state.divide_cpu(config.train.batch_size)
from benchmarks import step_jax

stepper, held = step_jax.Stepper(config), []
for _ in range(14):
    stepper.steps(1)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    held.append(pages * 4096 / 1e6)
print(json.dumps(held))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_memory_is_kept_and_does_not_grow_with_each_step(tmp_path):
    """A batch's activations are some hundred megabytes: they fit where they were before."""
    (tmp_path / "steps.py").write_text(STEPS)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    for _ in range(2):  # the first compiles, which leaves the heap in pieces: growth ends later
        done = subprocess.run(
            [sys.executable, str(tmp_path / "steps.py")],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
    held = json.loads(done.stdout)
    assert max(held) - held[1] < 500
    assert min(held[1:]) > 0.9 * held[1]

"""How the cost of dividing a step is counted and modelled."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import scaling
from launch.jobs import ROOT

# A sum over the devices of a [3, 5] float32 array, and how many of the first numbers are positive.
PROGRAM = """
import jax, jax.numpy as jnp
from benchmarks import scaling
from heatmap.state import create_mesh, replicated, sharded

mesh = create_mesh()
sums = lambda x: (x.reshape(-1, 3, 5).sum(0), (x[:, 0] > 0).sum())
step = jax.jit(sums, in_shardings=sharded(mesh), out_shardings=replicated(mesh))
found = scaling.exchanges_of(step.lower(jnp.ones((3 * 8 * 4, 5))).compile().as_text())
print(found.count > 0, found.sent)
"""


@pytest.mark.parametrize(("devices", "sent"), [(1, 0), (4, 4 * (3 * 5 + 1))])
def test_the_bytes_of_a_compiled_program_are_counted(devices, sent):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert told.stdout.split() == [str(devices > 1).encode(), str(sent).encode()]


def test_all_kinds_of_arrays_are_counted():
    program = """
      %a = f32[16,4]{1,0} all-reduce(%x), channel_id=1
      %g = f32[4,4]{1,0} all-gather(%w), channel_id=3
      %b = (bf16[8]{0}, f32[]) all-reduce-start(%y, %z), channel_id=2
      %c = f32[100]{0} add(%p, %q)
      %d = (f32[5]{0}, f32[40]{0}) all-gather-start(%v), channel_id=4
      %e = f32[40]{0} all-gather-done(%d)
      %f = f32[3]{0} collective-permute(%u), channel_id=5
    """
    begun = 2 * 8 + 4 + 4 * 40  # of what gathers, the result alone
    sent = 4 * 64 + 4 * 16 + begun + 4 * 3
    assert scaling.exchanges_of(program) == scaling.Exchanges(5, sent)


def test_a_step_is_work_and_exchanges():
    kind = scaling.Accelerator(peak=1e12, reached=0.5, link=1e9, latency=1e-3, batch=10)
    three = scaling.Exchanges(3, 1_000_000)
    alone, four = (scaling.step_seconds(kind, n, 1e9, three) for n in (1, 4))
    assert alone == pytest.approx(10 * 1e9 / 0.5e12)
    assert four - alone == pytest.approx(2 * 0.75 * 1e-3 + 3 * 2 * 2 * 1e-3)


def test_more_accelerators_are_never_more_efficient():
    for kind in scaling.ACCELERATORS.values():
        exchanges = scaling.Exchanges(60, 4_000_000)
        seconds = [scaling.step_seconds(kind, int(n), 2.4e9, exchanges) for n in 2 ** np.arange(13)]
        assert np.all(np.diff(seconds) > 0)

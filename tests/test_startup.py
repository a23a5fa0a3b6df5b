"""The clock of the time before the first step."""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import startup as benchmark
from heatmap import startup
from heatmap.startup import COMPILING, Startup
from tests.test_main import SMALL


@pytest.fixture
def clock():
    clock = Startup()
    yield clock
    clock.close()


def test_phases_add_up_to_the_age_of_the_process(clock):
    clock.ends("before")
    time.sleep(0.05)
    clock.ends("sleep")
    clock.ends("nothing")
    assert 0.05 <= clock.seconds["sleep"] < 0.5
    assert clock.seconds["nothing"] < 0.05
    assert sum(clock.seconds.values()) == pytest.approx(startup.process_age(), abs=0.1)
    assert clock.close().startswith(f"first step after {sum(clock.seconds.values()):.1f} s: before")


def test_what_is_compiled_is_booked_apart(clock):
    clock.listen()
    clock.ends("before")
    began = time.monotonic()
    jax.jit(lambda x: jnp.linalg.inv(x @ x))(jnp.ones((7, 7))).block_until_ready()
    took = time.monotonic() - began
    clock.ends("program")
    assert clock.programs >= 1
    assert 0 < clock.seconds[COMPILING] < took
    assert clock.seconds[COMPILING] + clock.seconds["program"] == pytest.approx(took, abs=0.05)
    line = clock.close()
    assert f"of {clock.programs} programs" in line
    # Nothing is booked any more.
    jax.jit(lambda x: x + 3)(jnp.ones(3)).block_until_ready()
    assert clock.close() == line


def test_the_age_is_that_of_the_process_through_a_restart():
    """A command that replaces itself by another has been running since its own start."""
    age = "from heatmap import startup; print(startup.process_age())"
    first = f"import os, sys, time; time.sleep(1); os.execv({sys.executable!r}, "
    first += f"[{sys.executable!r}, '-c', {age!r}])"
    began = time.monotonic()
    result = subprocess.run([sys.executable, "-c", first], capture_output=True, check=True)
    took = time.monotonic() - began
    least = 1.0 if sys.platform == "linux" else 0.0
    assert least <= float(result.stdout) <= took + 0.02


def test_elsewhere_the_age_is_that_of_the_module(monkeypatch, tmp_path):
    for text in (None, "", "1 (a name) R", "1 (a) R " + "x " * 30):
        monkeypatch.setattr(startup, "_STAT", tmp_path / "stat")
        if text is not None:
            (tmp_path / "stat").write_text(text)
        assert 0 <= startup.process_age() <= time.monotonic() - startup._LOADED


@pytest.mark.slow
def test_a_second_start_finds_the_programs_of_the_first(tiny_root, tmp_path):
    flags = [*SMALL, f"--config.data.root={tiny_root}"]
    benchmark.main(["--rounds=1", f"--out={tmp_path}", *flags])
    first, second = json.loads((tmp_path / "startup.json").read_text())["rows"]
    assert second[COMPILING] < first[COMPILING] / 2
    for row in (first, second):
        phases = [seconds for name, seconds in row.items() if name not in ("start", "all")]
        assert sum(phases) == pytest.approx(row["all"])
    assert (tmp_path / "startup.png").stat().st_size > 1000

"""Where the time of a step goes."""

import json
import subprocess
import sys

import pytest

from benchmarks import profile
from launch.jobs import ROOT

PROGRAM = """
%body (p: f32[4]) -> f32[4] {
  ROOT %add.7 = f32[4]{0} add(%p, %p), metadata={op_name="jit(step)/while/body/add"}
}
ENTRY %main (a: f32[4,4]) -> f32[4] {
  %dot_fusion.2 = f32[4,4]{1,0} fusion(%a, %a), metadata={op_name="jit(step)/jvp()/dot_general"}
  %copy.3 = f32[4,4]{0,1} copy(%dot_fusion.2)
  %broadcast.2 = f32[4,4]{0,1} broadcast(%p), metadata={op_name="jit(step)/add/broadcast.123"}
  %while.1 = (s32[], f32[4]) while(%t), body=%body, metadata={op_name="jit(step)/while"}
  ROOT %all-reduce.5 = f32[4]{0} all-reduce(%b), to_apply=%sum, metadata={op_name="jit(step)/psum"}
}
"""


def test_instructions_are_known_by_what_asked_for_them():
    assert profile.origins(PROGRAM) == {
        "add.7": "add",
        "dot_fusion.2": "dot_general",
        "copy.3": profile.COMPILER,
        "broadcast.2": "broadcast",
        "all-reduce.5": profile.EXCHANGE,
    }


def test_times_are_added_up_by_step():
    def event(name, dur, ph="X", **args):
        return {"name": name, "dur": dur, "ph": ph, "args": args}

    events = [
        event("dot_fusion.2", 3000),
        event("dot_fusion.2", 5000),
        event("kernel", 1000, hlo_op="add.7"),
        event("while.1", 9000),
        event("something else", 9000),
        {"name": "copy.3", "ph": "M", "args": {}},
    ]
    found = profile.add_up(events, profile.origins(PROGRAM), 2)
    assert found == {"dot_general": 4.0, "add": 0.5}


@pytest.mark.slow
def test_convolutions_are_seen(tmp_path):
    # A process of its own: the command divides the CPU, which JAX does only before its first use.
    command = [sys.executable, "-m", "benchmarks.profile", "--warm=1", "--steps=2"]
    command += ["--config.train.batch_size=2", f"--out={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "profile.json").read_text())["rows"]
    names = [row["asked for by"] for row in rows]
    assert "conv_general_dilated" in names
    assert sum(row["% of the step"] for row in rows) == pytest.approx(100)

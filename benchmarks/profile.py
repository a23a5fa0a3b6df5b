"""Where the time of a training step goes, by the operation that asked for it.

    python -m benchmarks.profile
    python -m benchmarks.profile --config=configs/beetles.py --config.model.backbone_init=random \\
        --config.train.batch_size=8

Takes steps under JAX's profiler and adds up, per device, what each instruction of the compiled
program took, by the JAX operation that it comes from; what the compiler has put in between, such
as copies into another layout, has none. A fusion counts where its last operation does.
"""

import collections
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import output
from heatmap import command_line, hardware
from heatmap.errors import UserError, guard

COMPILER = "the compiler's own"
EXCHANGE = "waiting for the other devices"
OTHERS = "what takes less than half a per cent"
# `%name = f32[2,3]{1,0} fusion(%a, %b), …, metadata={op_name="jit(train_step)/jvp()/add" …}`
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%(?P<name>[\w.-]+) = .*?\b(?P<code>[a-z][a-z0-9-]*)\(")
# JAX's name for it, without the number that the compiler may have given to a copy.
_ORIGIN = re.compile(r'op_name="[^"]*?([\w-]+)(?:\.\d+)?(?:\[[^"]*)?"')
_CONTAINERS = ("while", "call", "conditional")  # their time is that of what they hold


def origins(program: str) -> dict[str, str]:
    """Says for each instruction of a compiled program what asked for it.

    Args:
      program: the text of the optimised HLO.

    Returns:
      The last part of JAX's name, such as 'conv_general_dilated', by instruction.
    """
    found = {}
    for line in program.splitlines():
        instruction = _INSTRUCTION.match(line)
        if instruction is None or instruction["code"] in _CONTAINERS:
            continue
        origin = _ORIGIN.search(line)
        named = origin[1] if origin else COMPILER
        found[instruction["name"]] = EXCHANGE if "all-reduce" in instruction["code"] else named
    return found


def add_up(
    events: Iterable[Mapping[str, Any]], asked: Mapping[str, str], steps: int
) -> dict[str, float]:
    """Adds up a trace.

    Args:
      events: of the profiler, with durations in microseconds.
      asked: from `origins`.
      steps: that were taken, by all devices together.

    Returns:
      Milliseconds of a step by origin, the longest first.
    """
    found: collections.Counter[str] = collections.Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op", event.get("name"))
        if event.get("ph") == "X" and name in asked:
            found[asked[name]] += event["dur"] / 1e3 / steps
    return dict(found.most_common())


def measure(config: Any, warm: int, steps: int) -> list[dict[str, Any]]:
    """Takes steps under the profiler, and lays out what they took.

    Raises:
      UserError: if the profiler saw nothing of the program.
    """
    import jax

    from benchmarks import step_jax
    from heatmap import compilation, state

    compilation.keep()
    state.divide_cpu(config.train.batch_size)
    stepper = step_jax.Stepper(config)
    asked = origins(stepper.program())
    stepper.steps(warm)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a trace holds so many events, and Python's could fill it
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            stepper.steps(steps)
        files = list(pathlib.Path(folder).rglob("*.trace.json.gz"))
        events = [e for file in files for e in _read(file)]
    found = add_up(events, asked, steps * jax.local_device_count())
    if not found:
        raise UserError("JAX's profiler has seen no instruction of the step on these devices.")
    total = sum(found.values())
    large = {name: ms for name, ms in found.items() if ms > 0.005 * total}
    large[OTHERS] = total - sum(large.values())
    return [
        {"asked for by": name, "ms": ms, "% of the step": 100 * ms / total}
        for name, ms in large.items()
    ]


def _read(file: pathlib.Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]


def draw(rows: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draws the shares as bars."""
    axes.barh([row["asked for by"] for row in rows], [row["ms"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms of a step and device")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, takes the steps and publishes."""
    parser = output.parser("profile", __doc__)
    parser.add_argument("--warm", type=output.count, default=20, help="steps before")
    parser.add_argument("--steps", type=output.count, default=5, help="steps under the profiler")
    options, config = command_line.read(parser, arguments, default="configs/sigma2.py")
    rows = measure(config, options.warm, options.steps)
    output.publish(options.out, "profile", rows, lambda axes: draw(rows, axes))


if __name__ == "__main__":
    hardware.restart_with_kept_memory()
    guard(main)

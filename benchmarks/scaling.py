"""What dividing a step between devices costs, and what it would bring on many accelerators.

    python -m benchmarks.scaling

Takes the same training step, of one batch, on 1, 2, 4 and 8 devices of this CPU and on two
processes of one device each, in turns. All share the same cores, so none can be faster for the
work alone: what they take longer is the price of dividing. How often a step exchanges, and how many
bytes, is read from the compiled program.

The figure is a model, not a measurement: of a step on 8 to 4,096 accelerators, from the step's
operations and bytes and the assumptions in ACCELERATORS, which it prints.
"""

import dataclasses
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import contest, output
from benchmarks.contest import KEPT_MEMORY, Contestant, Result
from heatmap import command_line
from heatmap.errors import guard

DEVICES = (1, 2, 4, 8)
# An exchange and the types of what it returns: `(f32[3,3]{1,0}, f32[8]) all-reduce(`.
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_EXCHANGE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"(f64|f32|bf16|f16|s32|u32|pred)\[([\d,]*)\]")
_BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Exchanges:
    """What a step sends from device to device.

    Attributes:
      count: how often all wait for all.
      sent: bytes of what these return.
    """

    count: int
    sent: int


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """What the model of a step assumes.

    Attributes:
      peak: bfloat16 operations per second, of the maker.
      reached: the share of it that a step reaches.
      link: bytes per second and device of what joins them.
      latency: seconds of one hop of an all-reduce.
      batch: pictures per device.
      most: that such a network joins.
    """

    peak: float
    reached: float
    link: float
    latency: float
    batch: int
    most: int = 4096


ACCELERATORS = {
    "TPU v5e": Accelerator(197e12, 0.4, 50e9, 2e-6, 64, most=256),  # a slice
    "H100, 400 Gbit/s": Accelerator(989e12, 0.3, 50e9, 10e-6, 64),
    "A100, 100 Gbit/s": Accelerator(312e12, 0.4, 12.5e9, 10e-6, 64),
}


def exchanges_of(program: str) -> Exchanges:
    """Counts the exchanges of a compiled program, and adds up what they return.

    Without `model.shards` these are all-reduces: of gradients, and of the batch's statistics.

    Args:
      program: the text of the optimised HLO.
    """
    arrays, found = [], _EXCHANGE.findall(program)
    for types, kind, begun in found:
        told = _ARRAY.findall(types)
        # What begins one and goes on tells its operand before its result; an all-reduce does not.
        arrays += told[1:2] if begun and kind != "all-reduce" else told
    sent = sum(
        _BYTES[kind] * int(np.prod([int(n) for n in shape.split(",") if n]))
        for kind, shape in arrays
    )
    return Exchanges(len(found), sent)


def step_seconds(kind: Accelerator, count: int, work: float, exchanges: Exchanges) -> float:
    """Models a step: the work of a device's pictures, and all-reduces of statistics and gradients.

    These have the bandwidth of a ring and the latency of a tree, as NCCL's double binary trees have
    (Sanders et al., Parallel Computing 2009). None is hidden behind the work, or joined with
    another, as compilers for accelerators do it with gradients.

    Args:
      kind: the accelerator.
      count: of them, n.
      work: operations of one picture.
      exchanges: of the step.

    Returns:
      Seconds: batch·work/(reached·peak) + 2(n-1)/n·sent/link + exchanges·2·log2(n)·latency.
    """
    compute = kind.batch * work / (kind.reached * kind.peak)
    moving = 2 * (count - 1) / count * exchanges.sent / kind.link
    waiting = exchanges.count * 2 * np.log2(count) * kind.latency
    return float(compute + moving + waiting)


def contestants(flags: Sequence[str], seconds: float) -> list[Contestant]:
    """Lists the same step on more and more devices."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--serve", f"--seconds={seconds}"]
    here = {**KEPT_MEMORY, "JAX_PLATFORMS": "cpu"}
    sides = [
        Contestant(
            f"{n} device{'s' * (n > 1)}",
            [*command, *flags],
            {**here, "JAX_NUM_CPU_DEVICES": str(n)},
        )
        for n in DEVICES
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pair = [*command, *flags, f"--coordinator={address}"]
    return [*sides, Contestant("2 processes", pair, {**here, "JAX_NUM_CPU_DEVICES": "1"})]


def serve(arguments: Sequence[str], config: Any, options: Any) -> None:
    """Takes steps; the first of two processes tells the second when."""
    from benchmarks import step_jax
    from heatmap import compilation, processes

    compilation.keep()
    partner = None
    if options.coordinator:
        if options.process == 0:
            command = [sys.executable, "-m", "benchmarks.scaling", *arguments, "--process=1"]
            partner = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        processes.join(options.coordinator, 2, options.process)
    stepper = step_jax.Stepper(config, plain=False)

    def together(count: int) -> float:
        if partner and partner.stdin:
            partner.stdin.write(f"{count}\n")
            partner.stdin.flush()
        return stepper.steps(count)

    if options.process:
        for line in sys.stdin:
            stepper.steps(int(line))
        return
    together(1)
    count = max(1, round(options.seconds / together(2)))
    facts = {**stepper.facts(), **dataclasses.asdict(exchanges_of(stepper.program()))}
    contest.serve(facts, lambda: together(count))
    if partner:
        partner.communicate()


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Lays out the results, beside those of one device."""
    first = results[0]
    return [
        {
            "step on": result.name,
            "ms": 1e3 * result.median,
            "overhead, ms": 1e3 * (result.median - first.median),
            "times 1 device": result.median / first.median,
            "exchanges": result.facts["count"],
            "MB exchanged": result.facts["sent"] / 1e6,
        }
        for result in results
    ]


def draw(work: float, exchanges: Exchanges, axes: Any) -> None:
    """Draws how long the model says that a step takes on many accelerators."""
    for (name, kind), marker in zip(ACCELERATORS.items(), "osD", strict=True):
        counts = 2 ** np.arange(3, int(np.log2(kind.most)) + 1)
        steps = [step_seconds(kind, int(n), work, exchanges) for n in counts]
        share = step_seconds(kind, 1, work, Exchanges(0, 0)) / steps[-1]
        label = f"{name}, {kind.batch} pictures each; {counts[-1]:,}: {share:.0%} efficient"
        axes.plot(counts, [1e3 * step for step in steps], marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    sent = f"{exchanges.sent / 1e6:.3g} MB in {exchanges.count} exchanges"
    axes.set_title(f"{work / 1e9:.2g} GFLOP a picture, {sent}", fontsize=9)
    axes.set_xlabel("accelerators")
    axes.set_ylabel("ms of a step, modelled")
    axes.grid(alpha=0.3)
    axes.legend()


def assumptions() -> list[Mapping[str, Any]]:
    """Lists what the model assumes, for a table."""
    return [
        {
            "accelerator": name,
            "TFLOP/s, bf16": kind.peak / 1e12,
            "reached": kind.reached,
            "GB/s of a link": kind.link / 1e9,
            "µs a hop": kind.latency * 1e6,
            "pictures": kind.batch,
        }
        for name, kind in ACCELERATORS.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, holds the contest and publishes it."""
    parser = output.parser("scaling", __doc__)
    parser.add_argument("--rounds", type=output.count, default=7, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--serve", action="store_true", help="as a contestant")
    parser.add_argument("--coordinator", default="", help="with --serve, of two processes")
    parser.add_argument("--process", type=int, default=0, help="with --serve, which of the two")
    words = sys.argv[1:] if arguments is None else arguments
    options, config = command_line.read(parser, words, default="configs/sigma2.py")
    if options.serve:
        serve(words, config, options)
        return
    flags = [f"--config={options.config}", *command_line.fields_in(words)]
    results = contest.hold(contestants(flags, options.seconds), options.rounds)
    print("\n".join(output.table(assumptions())), end="\n\n")
    work = results[0].facts["work"] / config.train.batch_size
    facts = max((result.facts for result in results), key=lambda facts: facts["sent"])
    exchanges = Exchanges(facts["count"], facts["sent"])
    output.publish(
        options.out,
        "scaling",
        rows(results),
        lambda axes: draw(work, exchanges, axes),
        contestants=contest.told(options.config, results),
    )


if __name__ == "__main__":
    guard(main)

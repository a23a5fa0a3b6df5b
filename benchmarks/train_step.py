"""Training steps side by side: this project, its networks on plain operators, and PyTorch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --models vit --rounds 5

Each contestant is a process of its own; all take short turns within one run, round after round, on
a batch that lies in memory. Prints for each its median over the turns, how many times as fast as
PyTorch with channels last it is, or another --reference, which share of this machine's matrix
products it reaches, or of an accelerator's peak, and the most memory that its process has held.
PyTorch comes with the extra `bench`; without it, our own are compared.
"""

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import contest, output
from benchmarks.contest import KEPT_MEMORY, Contestant, Result
from heatmap import fields
from heatmap.errors import guard

REFERENCE = "PyTorch, channels last"
OURS = "heatmap"


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
      flags: config and fields.
      batch: pictures of a step.
    """

    flags: tuple[str, ...]
    batch: int


MODELS = {
    "unet": Model(("--config=configs/sigma2.py",), 32),
    "regression": Model(("--config=configs/regression.py",), 32),
    "vit": Model(("--config=configs/beetles.py", "--config.model.backbone_init=random"), 8),
}
# glibc gives large blocks back to the system after each step, unless it is told not to.
LARGE_BLOCKS = dict.fromkeys(
    ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"), str(2**30)
)


def side(
    library: str, name: str, flags: Sequence[str], environment: Mapping[str, str]
) -> Contestant:
    """Describes a process that takes part.

    Args:
      library: 'jax' is ours, 'torch' its twin.
      name: for the table.
      flags: of `benchmarks.step`.
      environment: variables to set.
    """
    command = [sys.executable, "-m", "benchmarks.step", f"--library={library}", *flags]
    return Contestant(name, command, {**(KEPT_MEMORY if library == "jax" else {}), **environment})


def contestants(model: Model, batch: int, seconds: float) -> list[Contestant]:
    """Lists who takes part for one model."""
    common = [*model.flags, f"--config.train.batch_size={batch}", f"--seconds={seconds}"]

    def ours(name: str, *flags: str, **environment: str) -> Contestant:
        return side("jax", name, [*common, *flags], environment)

    def torch(name: str, *flags: str, **environment: str) -> Contestant:
        return side("torch", name, [*common, "--channels_last", *flags], environment)

    sides = [
        ours(OURS),
        ours(f"{OURS}, one device", JAX_NUM_CPU_DEVICES="1"),
        ours(f"{OURS}, default malloc", GLIBC_TUNABLES=""),
        ours(f"{OURS}, plain operators", "--plain"),
        ours(f"{OURS}, bfloat16", "--config.model.dtype=bfloat16"),
    ]
    if importlib.util.find_spec("torch"):
        sides += [
            side("torch", "PyTorch", common, {}),
            torch(REFERENCE),
            torch(f"{REFERENCE}, tuned malloc", **LARGE_BLOCKS),
            torch(f"{REFERENCE}, our malloc", **KEPT_MEMORY),
            torch(f"{REFERENCE}, tuned malloc, compiled", "--compiled", **LARGE_BLOCKS),
            torch(f"{REFERENCE}, tuned malloc, bfloat16", "--bf16", **LARGE_BLOCKS),
            torch(f"{REFERENCE}, compiled, bfloat16", "--compiled", "--bf16", **LARGE_BLOCKS),
        ]
    return sides


def rows(
    name: str, batch: int, results: Sequence[Result], against: str = REFERENCE
) -> list[dict[str, Any]]:
    """Lays out the results of one model.

    Args:
      name: of the model.
      batch: pictures of a step.
      results: of the contestants; ours among them say how much work a step is.
      against: the contestant that the others are compared with.
    """
    by_name = {result.name: result for result in results}
    reference = by_name.get(against)
    work, peak = (  # unknown, where none of ours takes part
        max((r.facts[fact] for r in results if fact in r.facts), default=math.nan)
        for fact in ("work", "peak")
    )
    return [
        {
            "model": name,
            "contestant": result.name,
            "images/s": batch / result.median,
            f"times {against}": reference.median / result.median if reference else float("nan"),
            "GFLOP/s": work / result.median / 1e9,
            "of the matmul peak": work / result.median / peak,
            "most memory, MB": result.memory / 1e6,
            "seconds": result.seconds,
        }
        for result in results
    ]


def draw(found: Sequence[Mapping[str, Any]], axes: Any, what: str = "training") -> None:
    """Draws images per second as bars, by model."""
    labels = [f"{row['contestant']} ({row['model']})" for row in found]
    colours = ["#0b6e8f" if row["contestant"].startswith(OURS) else "#b0b0b0" for row in found]
    axes.barh(labels, [row["images/s"] for row in found], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel(f"images/s, {what}")
    axes.tick_params(axis="y", labelsize=7)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, holds the contests and publishes them."""
    parser = output.parser("train_step", __doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=output.count, default=9, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument(
        "--batch", type=output.count, help="pictures of a step; default: the model's own"
    )
    parser.add_argument("--reference", default=REFERENCE, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants; default: all")
    options = parser.parse_args(arguments)
    found, told = [], []
    for name in options.models:
        batch = options.batch or MODELS[name].batch
        sides = contestants(MODELS[name], batch, options.seconds)
        if options.only:
            known = {side.name: side for side in sides}
            sides = [fields.choose(known, only, "--only") for only in options.only]
        if options.reference != REFERENCE:  # of the extra, which may not be installed
            fields.choose({side.name: side for side in sides}, options.reference, "--reference")
        results = contest.hold(sides, options.rounds)
        found += rows(name, batch, results, options.reference)
        told += contest.told(name, results)
    output.publish(
        options.out, "train_step", found, lambda axes: draw(found, axes), contestants=told
    )


if __name__ == "__main__":
    guard(main)

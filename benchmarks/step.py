"""A contestant of `benchmarks.train_step` or `.predict`, which start it: works when told to.

python -m benchmarks.step --library=jax --config=configs/sigma2.py [--plain]
python -m benchmarks.step --library=torch --config=configs/sigma2.py [--channels_last]
    [--bf16] [--compiled] [--predict]
"""

import argparse
from typing import Any

from benchmarks import contest
from heatmap import command_line
from heatmap.config import Config
from heatmap.errors import guard


def stepper(options: argparse.Namespace, config: Config) -> Any:
    """Builds what does the work: a `Stepper`, or a `predict_jax.Reader`."""
    if options.library == "torch":
        from benchmarks import step_torch

        how = {name: getattr(options, name) for name in ("channels_last", "bf16", "compiled")}
        return step_torch.Stepper(config, **how)
    from benchmarks import predict_jax, step_jax
    from heatmap import compilation, state

    compilation.keep()
    state.divide_cpu(config.train.batch_size)
    if options.predict:
        return predict_jax.Reader(config)
    return step_jax.Stepper(config, options.plain)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and serves the contest."""
    parser = command_line.parser("python -m benchmarks.step", __doc__)
    parser.add_argument("--library", choices=["jax", "torch"], default="jax")
    parser.add_argument("--plain", action="store_true", help="jax: XLA's own operators")
    parser.add_argument("--channels_last", action="store_true", help="torch: layout of pictures")
    parser.add_argument("--bf16", action="store_true", help="torch: autocast to bfloat16")
    parser.add_argument("--compiled", action="store_true", help="torch: torch.compile")
    parser.add_argument("--predict", action="store_true", help="read points off, do not train")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    options, config = command_line.read(parser, arguments, default="configs/sigma2.py")
    contestant = stepper(options, config)
    work = contestant.predictions if options.predict else contestant.steps
    work(1)  # compiles
    count = max(1, round(options.seconds / work(2)))
    contest.serve({**contestant.facts(), "times": count}, lambda: work(count))


if __name__ == "__main__":
    guard(main)

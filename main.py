"""Trains a keypoint model.

    python main.py --config=configs/sigma2.py [--workdir=DIR] [--config.train.epochs=10 …]

The same command, with the same --workdir, goes on where it was interrupted, and prints the table
again once it has finished. Every field of the config is a flag; configs/common.py explains them.
"""

import datetime
import os
import pathlib
import sys

# Read once, when TensorFlow is first imported; its notices would bury the run's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from absl import app, flags, logging
from ml_collections import config_flags

from heatmap import command_line, hardware
from heatmap.errors import UserError, guard
from heatmap.startup import Startup

config_flags.DEFINE_config_file("config", None, command_line.HELP)
flags.DEFINE_string("workdir", "", "Where results go; default: a new folder under runs/.")
flags.DEFINE_string(
    "coordinator",
    "",
    "Of several processes: HOST:PORT of the first, or 'auto' to ask Slurm, Open MPI, the TPU's "
    "environment or Kubernetes, which is done by itself where one of the first three says that "
    "there are several; 'none' keeps to this one.",
)
flags.DEFINE_integer("processes", 1, "How many, with a --coordinator.")
flags.DEFINE_integer(
    "process",
    None,
    "Which of them this is, from 0; default: of a pod of an indexed Job in Kubernetes, its number.",
)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags for `app.run`, a slip being one sentence."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(arguments[1:]):
        print(__doc__, flags.FLAGS.module_help(sys.modules[__name__]), sep="\n")
        raise SystemExit(0)
    return command_line.parse(arguments, flags.FLAGS)


def main(_: list[str]) -> None:
    """Resolves the config and trains."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows each checkpoint and metric
    config = command_line.config_of(flags.FLAGS)
    startup = Startup()
    # Seconds of imports, not owed by a mistyped flag.
    import jax

    from heatmap import compilation, processes, state
    from heatmap.train import train

    compilation.keep()
    coordinator, count = flags.FLAGS.coordinator, flags.FLAGS.processes
    state.divide_cpu(config.train.batch_size // processes.expected(coordinator, count))
    processes.join(coordinator, count, flags.FLAGS.process)
    if not processes.is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the first speaks for all
    if not flags.FLAGS.workdir and processes.are_several():
        raise UserError("Several processes need one --workdir, on a disk that all of them see.")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(flags.FLAGS.workdir or fresh_workdir(name))
    used = hardware.summary(jax.devices(), jax.process_count())
    print(f"{config.to_json()}workdir: {workdir}\ndevices: {used}", flush=True)
    startup.listen()
    startup.ends("imports")
    train(config, workdir, startup)


def fresh_workdir(name: str) -> str:
    """Names a folder under runs/ that does not exist yet."""
    path = f"runs/{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    number = 0
    while os.path.exists(path + (f"-{number}" if number else "")):
        number += 1
    return path + (f"-{number}" if number else "")


if __name__ == "__main__":
    hardware.restart_with_kept_memory()
    guard(lambda: app.run(main, flags_parser=parse_flags))

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

from heatmap import config as config_lib
from heatmap import fields
from heatmap.config import Config
from heatmap.errors import UserError, guard

config_flags.DEFINE_config_file("config", None, "The config file, e.g. configs/sigma2.py.")
flags.DEFINE_string("workdir", "", "Where results go; default: a new folder under runs/.")


def restart_with_huge_pages() -> None:
    """Starts the same command anew with memory in huge pages, where Linux has them.

    Each step asks for the same hundreds of megabytes and gives them back, and the kernel spends a
    tenth of the time on clearing them in pages of 4 KB. glibc decides only when a process starts.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags for `app.run`.

    Raises:
      UserError: for an unknown flag or field, a wrong type, or a config that cannot be loaded.
    """
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(arguments[1:]):
        print(__doc__, flags.FLAGS.module_help(sys.modules[__name__]), sep="\n")
        raise SystemExit(0)
    for argument in arguments[1:]:
        name = argument.split("=", 1)[0].removeprefix("--config.")
        if argument.startswith("--config.") and name not in fields.names_of(Config):
            hint = fields.nearest(name, fields.names_of(Config))
            raise UserError(f"{name} is not a config field: {hint}")
    try:
        rest = flags.FLAGS(arguments)
        if flags.FLAGS["config"].present:
            flags.FLAGS.config.to_dict()  # a config that failed to load says so when it is used
    except flags.Error as error:
        raise UserError(str(error)) from error
    except Exception as error:  # whatever a config file may do wrong
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        ready = sorted(path.stem for path in pathlib.Path(__file__).parent.glob("configs/[!_]*.py"))
        raise UserError(
            f"The config cannot be loaded: {reason}; in configs/ are {', '.join(ready)}."
        ) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; flags look like --config.train.epochs=10.")
    if not flags.FLAGS["config"].present:
        raise UserError("Say what to train: --config=configs/sigma2.py, for example.")
    return rest


def main(_: list[str]) -> None:
    """Resolves the config and trains."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # --verbosity=0 shows each checkpoint and metric
    flag = flags.FLAGS["config"]
    overrides = config_flags.get_override_values(flag)
    values = config_lib.flag_overrides(flags.FLAGS.config.to_dict(), overrides)
    config = config_lib.from_mapping(values)
    name = pathlib.Path(config_flags.get_config_filename(flag)).stem
    workdir = pathlib.Path(flags.FLAGS.workdir or fresh_workdir(name))
    print(f"{config.to_json()}workdir: {workdir}", flush=True)

    from heatmap import state  # seconds of imports, not owed by a mistyped flag
    from heatmap.train import train

    state.divide_cpu(config.train.batch_size)
    train(config, workdir)


def fresh_workdir(name: str) -> str:
    """Names a folder under runs/ that does not exist yet."""
    path = f"runs/{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    number = 0
    while os.path.exists(path + (f"-{number}" if number else "")):
        number += 1
    return path + (f"-{number}" if number else "")


if __name__ == "__main__":
    restart_with_huge_pages()
    guard(lambda: app.run(main, flags_parser=parse_flags))

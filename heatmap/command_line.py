"""The flags that every command with a config takes: --config=FILE and --config.FIELD=VALUE.

Absl's flags and ml_collections' config files, checked so that a slip is one sentence.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from heatmap import config as config_lib
from heatmap import fields
from heatmap.config import Config
from heatmap.errors import UserError

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


HELP = "The config file, e.g. configs/sigma2.py."


def parse(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Parses a command line.

    Args:
      arguments: the program's name and what follows it.
      values: the flags, --config among them.

    Returns:
      What is left, the program's name.

    Raises:
      UserError: for an unknown flag or field, a wrong type, or a config that cannot be loaded.
    """
    for argument in arguments[1:]:
        name = argument.split("=", 1)[0].removeprefix("--config.")
        if argument.startswith("--config.") and name not in fields.names_of(Config):
            hint = fields.nearest(name, fields.names_of(Config))
            raise UserError(f"{name} is not a config field: {hint}")
    try:
        rest = values(arguments)
        if values["config"].value is not None:
            values.config.to_dict()  # a config that failed to load says so when it is used
    except flags.Error as error:
        raise UserError(str(error)) from error
    except Exception as error:  # whatever a config file may do wrong
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        ready = sorted(path.stem for path in _CONFIGS.glob("[!_]*.py"))
        raise UserError(
            f"The config cannot be loaded: {reason}; in configs/ are {', '.join(ready)}."
        ) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag; flags look like --config.train.epochs=10.")
    if values["config"].value is None:
        raise UserError("Say what to train: --config=configs/sigma2.py, for example.")
    return rest


def config_of(values: flags.FlagValues) -> Config:
    """Returns the config that parsed flags describe.

    Raises:
      UserError: for a field that has the wrong type or makes no sense.
    """
    overrides = config_flags.get_override_values(values["config"])
    return config_lib.from_mapping(config_lib.flag_overrides(values.config.to_dict(), overrides))


def fields_in(arguments: Sequence[str]) -> list[str]:
    """Returns those of the arguments that set a field of the config, to pass them on."""
    return [argument for argument in arguments if argument.startswith("--config.")]


def parser(program: str, about: str | None) -> argparse.ArgumentParser:
    """Returns a command line that keeps the lines of its description and takes no abbreviations.

    An abbreviation could be taken for a field of the config.

    Args:
      program: as the user types it.
      about: what it does, for --help.
    """
    return argparse.ArgumentParser(
        prog=program,
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_models(flags_of_program: argparse.ArgumentParser) -> None:
    """Adds the flags of every command that asks trained runs: --workdir and --flip."""
    flags_of_program.add_argument(
        "--workdir",
        type=pathlib.Path,
        action="append",
        required=True,
        help="of a trained run; given again, the models vote",
    )
    flags_of_program.add_argument(
        "--flip", action="store_true", help="predict the mirrored picture too"
    )


def read(
    flags_of_program: argparse.ArgumentParser, arguments: Sequence[str] | None, default: str
) -> tuple[argparse.Namespace, Config]:
    """Parses the command line of a program that takes a config among other flags.

    Args:
      flags_of_program: with the other flags, from `parser`.
      arguments: what follows the program's name; None = of this process.
      default: the config file that is taken if none is given.

    Returns:
      (the other flags, the config).

    Raises:
      UserError: as `parse` and `config_of`.
    """
    flags_of_program.add_argument(
        "--config", default=default, metavar="FILE", help=f"default: {default}"
    )
    flags_of_program.epilog = (
        "Every field of the config is a flag as well: --config.train.steps=100."
    )
    options, fields_given = flags_of_program.parse_known_args(arguments)
    given = [flags_of_program.prog, f"--config={options.config}", *fields_given]
    values = flags.FlagValues()  # of this call alone
    # Python would run another file inside the module of the last, and keep what that one defined.
    sys.modules.pop("config_config", None)
    config_flags.DEFINE_config_file("config", None, HELP, flag_values=values, sys_argv=given)
    parse(given, values)
    return options, config_of(values)

"""The flags that every command with a config takes: --config=FILE and --config.FIELD=VALUE.

Absl's flags and ml_collections' config files, checked so that a slip is one sentence.
"""

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
_HELP = {"--help", "-h", "-help", "--helpfull", "--helpshort"}


HELP = "The config file, e.g. configs/sigma2.py."


def parse(arguments: Sequence[str], values: flags.FlagValues, about: str) -> list[str]:
    """Parses a command line.

    Args:
      arguments: the program's name and what follows it.
      values: the flags, --config among them.
      about: what the program does, printed on --help.

    Returns:
      What is left, the program's name.

    Raises:
      UserError: for an unknown flag or field, a wrong type, or a config that cannot be loaded.
    """
    if _HELP & set(arguments[1:]):
        print(f"usage: {arguments[0]} --config=FILE [--config.FIELD=VALUE ...]\n", about, sep="\n")
        print(values.main_module_help())
        raise SystemExit(0)
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


def read(arguments: Sequence[str] | None, program: str, about: str, default: str) -> Config:
    """Parses the command line of a program that takes a config and nothing else.

    Args:
      arguments: what follows the program's name; None = of this process.
      program: its name.
      about: what it does, printed on --help.
      default: the config file that is taken if none is given.

    Returns:
      The config.

    Raises:
      UserError: as `parse` and `config_of`.
    """
    given = [program, *(sys.argv[1:] if arguments is None else arguments)]
    if not any(argument.split("=", 1)[0] in ("--config", "-config") for argument in given):
        given.insert(1, f"--config={default}")
    values = flags.FlagValues()  # of this call alone
    # Python would run another file inside the module of the last, and keep what that one defined.
    sys.modules.pop("config_config", None)
    config_flags.DEFINE_config_file("config", None, HELP, flag_values=values, sys_argv=given)
    parse(given, values, about)
    return config_of(values)

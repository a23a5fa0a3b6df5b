"""Sweeps as data: lists of config overrides, put together from smaller lists.

    runs = product(sweep("targets.sigma", [1, 2, 3]), sweep("optim.learning_rate", [1e-3, 3e-3]))

A config may hold its own sweep as `get_hyper(hyper)`, which is given this module. A field that
begins with a colon is an argument of the config: `sweep(":sigma", [1, 2])` makes runs of
'configs/beetles.py:sigma=1' and 'configs/beetles.py:sigma=2'.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

ARGUMENT = ":"
Overrides = dict[str, Any]  # dotted config field, or colon and argument, to value
Sweep = list[Overrides]


def sweep(field: str, values: Iterable[Any]) -> Sweep:
    """Returns one run for each value of a field."""
    return [{field: value} for value in values]


def fixed(field: str, value: Any) -> Sweep:
    """Returns a single run; in a `product` it sets the field in all runs."""
    return sweep(field, [value])


def product(*sweeps: Sweep) -> Sweep:
    """Returns every combination, the last sweep varying fastest.

    Raises:
      ValueError: if two of the sweeps set the same field.
    """
    return [_merge(runs) for runs in itertools.product(*sweeps)]


def zipit(*sweeps: Sweep) -> Sweep:
    """Joins the first runs of each sweep, the second ones, and so on.

    Raises:
      ValueError: if the sweeps differ in length, or two of them set the same field.
    """
    lengths = [len(s) for s in sweeps]
    if len(set(lengths)) > 1:
        raise ValueError(f"zipit needs sweeps of one length, got {lengths}.")
    return [_merge(runs) for runs in zip(*sweeps, strict=True)]


def name_of(overrides: Overrides) -> str:
    """Spells a run as 'sigma=2,learning_rate=0.001', by the last part of each field's name.

    Fields whose last parts coincide keep their whole names.
    """
    fields = [field.removeprefix(ARGUMENT) for field in overrides]
    leaves = [field.rsplit(".", 1)[-1] for field in fields]
    parts = [
        f"{leaf if leaves.count(leaf) == 1 else field}={_spell(value)}"
        for leaf, field, value in zip(leaves, fields, overrides.values(), strict=True)
    ]
    return ",".join(parts)


def is_argument(field: str) -> bool:
    """Says whether a key of overrides is an argument of the config rather than a field in it."""
    return field.startswith(ARGUMENT)


def divide(run: Overrides) -> tuple[Overrides, Overrides]:
    """Divides a run into arguments of the config, without their colon, and fields in it."""
    arguments = {f.removeprefix(ARGUMENT): v for f, v in run.items() if is_argument(f)}
    return arguments, {f: v for f, v in run.items() if not is_argument(f)}


def with_arguments(config: str, arguments: Overrides) -> str:
    """Adds arguments to a config file's name: 'configs/beetles.py:sigma=1,lr=1e-3'."""
    path, _, given = config.partition(ARGUMENT)
    all_of_them = [*([given] if given else []), *(f"{k}={v}" for k, v in arguments.items())]
    return f"{path}{ARGUMENT}{','.join(all_of_them)}" if all_of_them else path


def flags(overrides: Overrides) -> list[str]:
    """Spells overrides as flags of main.py."""
    return [f"--config.{field}={value}" for field, value in overrides.items()]


def _merge(runs: Sequence[Overrides]) -> Overrides:
    merged: Overrides = {}
    for run in runs:
        for field, value in run.items():
            if field in merged:
                raise ValueError(f"{field} is set by two of the sweeps.")
            merged[field] = value
    return merged


def _spell(value: Any) -> str:
    """Writes a value so that it may stand in the name of a folder."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isalnum() or c in "+-._" else "_" for c in text)

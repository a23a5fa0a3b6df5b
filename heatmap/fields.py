"""Typed fields by name: nested mappings in, frozen dataclasses out.

Knows nothing of what the fields mean; `heatmap.config` says which there are.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal

from heatmap.errors import UserError


def parse(kind: type, values: Any) -> Any:
    """Builds a dataclass of a nested mapping.

    Args:
      kind: a dataclass whose fields are dataclasses, Literals, tuples, str, int, float or bool.
      values: a nested mapping with a value for every field that has no default.

    Returns:
      An instance of `kind`.

    Raises:
      UserError: for an unknown, missing or ill-typed field, by its dotted name.
    """
    return _parse_fields(kind, values, "", names_of(kind))


def _parse(hint: Any, value: Any, name: str, known: list[str]) -> Any:
    """Converts `value` to the type `hint`, or raises a UserError that names the field."""
    if dataclasses.is_dataclass(hint):
        return _parse_fields(typing.cast(type, hint), value, name, known)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{name}={value!r} is not one of {', '.join(arguments)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{name} must be a tuple, got {value!r}.")
        hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(hints) != len(value):
            raise UserError(f"{name} must have {len(hints)} values, got {value!r}.")
        pairs = zip(hints, value, strict=True)
        return tuple(_parse(h, v, f"{name}[{i}]", known) for i, (h, v) in enumerate(pairs))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        got = f"{value!r} ({type(value).__name__})"
        raise UserError(f"{name} must be of type {hint.__name__}, got {got}.")
    if hint is float and not math.isfinite(value):
        raise UserError(f"{name} must be finite, got {value!r}.")
    return value


def _parse_fields(kind: type, values: Any, name: str, known: list[str]) -> Any:
    prefix = f"{name}." if name else ""
    if not isinstance(values, Mapping):
        raise UserError(f"{name or 'the config'} must hold fields, got {values!r}.")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            hint = nearest(f"{prefix}{key}", [*(prefix + h for h in hints), *known])
            raise UserError(f"{prefix}{key} is not a config field: {hint}")
    fields = dataclasses.fields(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    missing = [prefix + key for key in hints if key in needed and key not in values]
    if missing:
        raise UserError(
            f"The config lacks {', '.join(missing)}; build it on configs/common.py, or train anew "
            "if it was written by another version."
        )
    given = {key: _parse(hints[key], value, prefix + key, known) for key, value in values.items()}
    return kind(**given)


def names_of(kind: type, prefix: str = "") -> list[str]:
    """Lists the dotted names of all fields of a dataclass, leaves only."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names += names_of(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Spells a nested mapping as {dotted name: leaf}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def nearest(name: str, valid: Collection[str]) -> str:
    """Phrases the hint that ends an error about an unknown name."""
    leaf = [v for v in valid if v.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    # The right field in the wrong group is likelier meant than another field of that group.
    near = difflib.get_close_matches(name, leaf or valid, n=1, cutoff=0.0 if leaf else 0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"choose from {', '.join(sorted(valid))}."


def choose(table: Mapping[str, Any], name: str, field: str) -> Any:
    """Looks a name up in a table such as MODELS or DECODERS.

    Raises:
      UserError: naming the field and the nearest valid name.
    """
    if name not in table:
        raise UserError(f"{field}={name!r} is not known: {nearest(name, table)}")
    return table[name]

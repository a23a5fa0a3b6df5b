"""Small tools that the readers of label files share: JSON with located errors, names, numbers.

Every message names the file and the record, so each function takes `where`, such as
"annotations.json, image 3 (cat.png)".
"""

import difflib
import json
import math
import pathlib
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.geometry import Size

_KINDS = {str: "text", list: "a list", dict: "an object", int: "a whole number"}


def root_folder(config: DataConfig, layout: str) -> pathlib.Path:
    """Finds the data's folder.

    Args:
      config: its `root` is the folder; ~ stands for the home folder.
      layout: what the folder should hold, for the message.

    Raises:
      UserError: if `data.root` is empty or is no folder.
    """
    if not config.root:
        raise UserError(f"data.root is empty; set --config.data.root to the folder with {layout}.")
    root = pathlib.Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={config.root!r} is not a folder; name the one with {layout}.")
    return root


def read_text(path: pathlib.Path) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
      UserError: naming the file, if it is missing, empty or no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"There is no file {path}; check data.root and data.name.") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: you have no permission to.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}); save it so.") from error
    if not text.strip():
        raise UserError(f"{path} is empty; write the labels again.")
    return text


def load_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Reads a JSON file.

    Args:
      path: of the file.
      kind: what it must hold, dict or list.

    Raises:
      UserError: naming the file, and the line and column of what does not parse.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON at line {error.lineno}, column {error.colno} "
            f"({error.msg}); mend that line or export the labels again."
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise UserError(f"{path} cannot be read ({error}); export the labels again.") from error
    if not isinstance(value, kind):
        wanted = "a JSON object {...}" if kind is dict else "a JSON list [...]"
        raise UserError(f"{path} must hold {wanted}, not {_short(value)}.")
    return value


def field(record: Any, name: str, kind: type, where: str, default: Any = None) -> Any:
    """Takes a field of a JSON object.

    Args:
      record: the object.
      name: of the field.
      kind: str, list, dict or int.
      where: for messages.
      default: returned if the field is missing or null; None makes it obligatory.

    Raises:
      UserError: if the record is no object, or the field is missing or of another type.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} must be an object {{...}}, not {_short(record)}.")
    value = record.get(name)
    if value is None:
        if default is None:
            raise UserError(f"{where} lacks {name!r}; add it.")
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {name!r} must be {_KINDS[kind]}, not {_short(value)}.")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # what a table of numbers can hold
        raise UserError(f"{where}: {name!r} is the number {_short(value)}, too large; mend it.")
    return value


def number(value: Any, what: str, where: str) -> float:
    """Checks that a JSON value is a finite number.

    Raises:
      UserError: naming `what` and `where`, also for NaN and infinity, which JSON files may hold.
    """
    try:
        finite = not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        raise UserError(
            f"{where}: {what} must be a finite number, not {_short(value)}; a point that is not "
            "there is written as missing."
        )
    return float(value)


def declared_size(record: Mapping[str, Any], where: str) -> Size | None:
    """Returns (height, width) that an image record states, or None if it states neither.

    Raises:
      UserError: if they are no whole positive numbers, or only one is there.
    """
    if record.get("height") is None and record.get("width") is None:
        return None
    size = tuple(field(record, name, int, where) for name in ("height", "width"))
    if min(size) < 1:
        raise UserError(f"{where}: 'height' and 'width' must be positive, not {size}.")
    return size


def keypoint_names(values: list, where: str) -> tuple[str, ...]:
    """Checks a list of keypoint names.

    Raises:
      UserError: if it is empty or holds something else than text.
    """
    if not values or not all(isinstance(name, str) and name for name in values):
        raise UserError(f"{where}: the keypoint names must be a list of texts: {_short(values)}.")
    return tuple(values)


def group(record: Mapping[str, Any], group_by: str, default: str, where: str) -> str:
    """Returns the value of the field that `data.split.group_by` names, as text.

    Raises:
      UserError: if the image record has no such field, with the nearest that it has.
    """
    if not group_by:
        return default
    value = record.get(group_by)
    if value is None:
        near = difflib.get_close_matches(group_by, [str(name) for name in record], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(record)}."
        raise UserError(f"{where} lacks the field data.split.group_by={group_by!r}: {hint}")
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: the group {group_by!r} must be text, not {_short(value)}.")
    return str(value)


def check_unique(values: Iterable[Hashable], what: str, where: str) -> None:
    """Refuses a repeated value.

    Raises:
      UserError: naming the first value that occurs twice.
    """
    seen = set()
    for value in values:
        if value in seen:
            raise UserError(f"{where} lists the {what} {value!r} twice; keep one of them.")
        seen.add(value)


def natural_key(text: str) -> list[Any]:
    """A sort key under which frame 2 comes before frame 10."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def natural_ranks(names: Iterable[str]) -> dict[str, int]:
    """Returns for each distinct name its place in the natural order, from 0."""
    return {name: i for i, name in enumerate(sorted(set(names), key=natural_key))}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

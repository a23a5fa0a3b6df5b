"""What a check has found: how bad it is, in a sentence, with its numbers."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

OK, WARN, FAIL = "ok", "warn", "FAIL"
_SHOWN = 5  # names in a sentence; doctor.json has all of them
_WIDTH, _LEVEL, _NAME = 100, 6, 14  # characters of a line, and of its first two columns


@dataclasses.dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
      level: OK, WARN or FAIL.
      check: its name.
      message: what was found, with the numbers that matter, and what to do.
      rows: lines below the message, such as those of a table.
      data: all numbers and names, as JSON holds them.
    """

    level: str
    check: str
    message: str
    rows: tuple[str, ...] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def text(self) -> str:
        """Lays the finding out for reading."""
        begin = f"{self.level:<{_LEVEL}}{self.check:<{_NAME}}"
        margin = " " * len(begin)
        return "\n".join(
            [
                _filled(self.message, begin, margin),
                *(_filled(row, margin, margin) for row in self.rows),
            ]
        )


def _filled(text: str, first: str, others: str) -> str:
    """Breaks a long line; a short one, such as a table's, keeps its blanks."""
    if len(first + text) <= _WIDTH:
        return first + text
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def failed(findings: Sequence[Finding]) -> bool:
    """Says whether any check failed."""
    return any(finding.level == FAIL for finding in findings)


def named(records, rows) -> list[str]:
    """Names records: the picture, and the instance where it is not the first.

    Args:
      records: with `ids` and `instances`.
      rows: of them.
    """
    return [
        str(records.ids[row]) + (f" #{records.instances[row]}" if records.instances[row] else "")
        for row in np.asarray(rows, int)
    ]


def some(names: Sequence[str]) -> str:
    """Lists the first few names: 'a, b and 3 more'."""
    left = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {left} more" if left > 0 else "")

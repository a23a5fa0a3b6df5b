"""How numbers are written in sentences and tables."""

import math
from collections.abc import Callable, Sequence

from heatmap.report.findings import Interval, PairedTest

UNKNOWN = "unknown"
_UNIT = " px"


def share(value: float) -> str:
    """Writes a share such as a PCK."""
    return UNKNOWN if math.isnan(value) else f"{value:.3f}"


def px(value: float) -> str:
    """Writes pixels."""
    if math.isnan(value):
        return UNKNOWN
    return (f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}") + _UNIT


def number(value: float) -> str:
    """Writes any other number."""
    return UNKNOWN if math.isnan(value) else f"{value:.3g}"


def percent(value: float) -> str:
    """Writes a share in per cent."""
    if math.isnan(value):
        return UNKNOWN
    return "less than 0.01 %" if 0 < value < 1e-4 else f"{100 * value:.3g} %"


def interval(found: Interval, write: Callable[[float], str], sign: int = 1) -> str:
    """Writes 'value [low, high]', or says that there is no interval.

    Args:
      found: to write.
      write: for one number.
      sign: -1 turns it round.
    """
    value, low, high = (sign * v for v in (found.value, found.low, found.high))
    if math.isnan(low) or math.isnan(high):
        return f"{write(value)}, no interval"
    low, high = sorted((low, high))
    return f"{write(value)} [{', '.join(write(end).removesuffix(_UNIT) for end in (low, high))}]"


def p_value(test: PairedTest) -> str:
    """Writes an adjusted p-value."""
    if math.isnan(test.adjusted):
        return "not tested"
    return "adjusted p < 0.001" if test.adjusted < 0.001 else f"adjusted p = {test.adjusted:.3f}"


def join(parts: Sequence[str]) -> str:
    """Joins parts as a sentence does: 'a, b and c'."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)

"""Durations as Go writes and reads them, because Ollama's API and command line do: ``5m``, ``1h30m``, ``1.5s``.

In memory a duration is a float of seconds; without end is ``math.inf``.
"""

from __future__ import annotations

import math
import re

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
MAX_S = 2**63 / 1e9  # Go counts nanoseconds in 64 bits


def parse_duration(text: str) -> float:
    """Seconds of a Go duration; ``-1m`` is negative, ``0`` needs no unit.

    Raises:
        ValueError: it is none.
    """
    rest = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if rest == "0":
        return 0.0
    seconds, position = 0.0, 0
    while match := _PART.match(rest, position):
        seconds += float(match[1]) * _UNITS_S[match[2]]
        position = match.end()
    if not rest or position < len(rest) or seconds >= MAX_S:
        raise ValueError(f"invalid duration {text!r}: a number with a unit is wanted, such as 5m, 1h30m or 1.5s")
    return -seconds if text.startswith("-") else seconds


def keep_alive_s(value: str | float) -> float:
    """Seconds that a model stays loaded: a number is seconds, a text a Go duration, negative means without end.

    Raises:
        ValueError: a text that is no duration.
    """
    seconds = parse_duration(value) if isinstance(value, str) else float(min(max(value, -1), 1 << 63))
    return math.inf if seconds < 0 else seconds


def format_duration(nanoseconds: int) -> str:
    """As Go prints it: ``1.234567891s``, ``2m3.5s``, ``850.2ms``, ``12µs``, ``0s``."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for size, unit in ((1, "ns"), (10**3, "µs"), (10**6, "ms")):
        if rest < size * 1000:
            return f"{sign}{_decimal(rest, size)}{unit}"
    minutes, rest = divmod(rest, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest, 10**9)}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{seconds}"
    return f"{sign}{minutes}m{seconds}" if minutes else f"{sign}{seconds}"


def _decimal(count: int, size: int) -> str:
    """``count / size`` without trailing zeros; *size* is a power of ten."""
    whole, fraction = divmod(count, size)
    digits = f"{fraction:0{len(str(size)) - 1}d}".rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)

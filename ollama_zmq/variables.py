"""What the text of an environment variable means: shared by whoever reads one."""

from __future__ import annotations

_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_MAX_COUNT = (1 << 31) - 1


def trimmed(text: str) -> str:
    """*text* of a variable without the spaces and quotes around it."""
    return text.strip().strip("\"'").strip()


def is_on(text: str, *, default: bool = False) -> bool:
    """Whether the switch that says *text* is on: *default* when it is empty, and what is neither true nor false is."""
    text = trimmed(text)
    return text not in _FALSE if text else default


def unsigned(text: str) -> int:
    """The number that *text* is. Raises ValueError when it is none, or more than 31 bits."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    count = int(text)
    if count > _MAX_COUNT:
        raise ValueError(text)
    return count

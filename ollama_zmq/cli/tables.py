"""Tables as Ollama prints them: left aligned, no borders, four spaces between columns."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import east_asian_width

GAP = "    "


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """*header* and *rows* in columns; every cell is padded, the last one too."""
    return "\n".join(columns([header, *rows]))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line for each of *rows*, which may differ in length."""
    widths: dict[int, int] = {}
    for row in rows:
        for i, cell in enumerate(row):
            widths[i] = max(widths.get(i, 0), display_width(cell))
    return [
        GAP.join(cell + " " * (widths[i] - display_width(cell)) for i, cell in enumerate(row)) + GAP for row in rows
    ]


def display_width(text: str) -> int:
    """Columns of a terminal that *text* takes."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)

"""Tables as Ollama prints them: left aligned, no borders, four spaces between columns.

A terminal that is too narrow for that gets two, and if it still is, long cells of a table lose their middle. Our own
tables have two spaces everywhere, and fit 80 columns with names of usual length. Into a pipe or a file every cell is
whole.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import accumulate
from unicodedata import category, east_asian_width

from ollama_zmq.cli.terminal import is_terminal
from ollama_zmq.printable import printable_line

GAP = "    "
NARROW = "  "
MIN_WIDTH = 12  # of a column that loses something: an ID has so many


def table(header: Sequence[str], rows: Sequence[Sequence[str]], gap: str = GAP) -> str:
    """*header* and *rows* in columns."""
    return "\n".join(columns([header, *rows], gap, shortens=True))


def columns(rows: Sequence[Sequence[str]], gap: str = GAP, *, shortens: bool = False) -> list[str]:
    """One line for each of *rows*, which may differ in length. With Ollama's gap the last cell is padded, too.

    Long cells lose their middle on a narrow terminal if *shortens*; else it breaks their lines.
    """
    rows = [[printable_line(cell) for cell in row] for row in rows]
    widths = _widths(rows)
    if is_terminal(sys.stdout):
        room = shutil.get_terminal_size().columns
        if gap == GAP and sum(widths.values()) + len(gap) * len(widths) > room:
            gap = NARROW
        if shortens and gap == NARROW:
            widths = _fitted(widths, room - len(gap) * (len(widths) - 1))
            rows = [[shortened(cell, widths[i]) for i, cell in enumerate(row)] for row in rows]
    lines = [
        gap.join(cell + " " * (widths[i] - display_width(cell)) for i, cell in enumerate(row)) + gap for row in rows
    ]
    return lines if gap == GAP else [line.rstrip() for line in lines]


def paragraph(text: str, indent: str = "") -> str:
    """*text* on one line, or wrapped at words where a terminal would cut it."""
    line = printable_line(text)
    if not is_terminal(sys.stdout):
        return f"{indent}{line}"
    width = max(shutil.get_terminal_size().columns - 1, 20)
    return textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def display_width(text: str) -> int:
    """Columns of a terminal that *text* takes."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    if character < "\u0300":
        return 1
    if category(character) in ("Mn", "Me", "Cf"):  # accents that are put on the character before, and marks
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def shortened(text: str, width: int) -> str:
    """*text*, with "…" for its middle where it takes more than *width* columns."""
    if display_width(text) <= width:
        return text
    head = _beginning(text, width // 2)
    return f"{head}…{_beginning(text[::-1], width - 1 - display_width(head))[::-1]}"


def _beginning(text: str, width: int) -> str:
    """As much of *text* as *width* columns hold."""
    for i, taken in enumerate(accumulate(map(_width, text))):
        if taken > width:
            return text[:i]
    return text


def _widths(rows: Sequence[Sequence[str]]) -> dict[int, int]:
    """Of each column."""
    widths: dict[int, int] = {}
    for row in rows:
        for i, cell in enumerate(row):
            widths[i] = max(widths.get(i, 0), display_width(cell))
    return widths


def _fitted(widths: dict[int, int], room: int) -> dict[int, int]:
    """*widths*, with the widest made narrower until all fit into *room* columns, or none is wide."""
    fitted = dict(widths)
    while sum(fitted.values()) > room and max(fitted.values()) > MIN_WIDTH:
        fitted[max(fitted, key=lambda i: fitted[i])] -= 1
    return fitted

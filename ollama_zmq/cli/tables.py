"""Tables as Ollama prints them: left aligned, no borders, four spaces between columns.

A terminal that is too narrow for that gets two. Our own tables have two everywhere, and fit 80 columns.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from unicodedata import category, east_asian_width

from ollama_zmq.cli.terminal import is_terminal
from ollama_zmq.printable import printable_line

GAP = "    "
NARROW = "  "


def table(header: Sequence[str], rows: Sequence[Sequence[str]], gap: str = GAP) -> str:
    """*header* and *rows* in columns."""
    return "\n".join(columns([header, *rows], gap))


def columns(rows: Sequence[Sequence[str]], gap: str = GAP) -> list[str]:
    """One line for each of *rows*, which may differ in length. With Ollama's gap the last cell is padded, too."""
    rows = [[printable_line(cell) for cell in row] for row in rows]
    widths: dict[int, int] = {}
    for row in rows:
        for i, cell in enumerate(row):
            widths[i] = max(widths.get(i, 0), display_width(cell))
    if gap == GAP and is_terminal(sys.stdout) and _too_wide(widths.values()):
        gap = NARROW
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


def _too_wide(widths: Collection[int]) -> bool:
    return sum(widths) + len(GAP) * len(widths) > shutil.get_terminal_size().columns

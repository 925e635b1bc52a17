"""Text that arrives piece by piece, wrapped at words as it is printed.

A word is printed as it comes; when it turns out not to fit, it is erased and written again on the next line.
"""

from __future__ import annotations

from ollama_zmq.cli.tables import display_width

MARGIN = 5
MIN_WIDTH = 10


class WordWrap:
    """Turns pieces of a text into what a terminal of *width* columns is to be sent; width 0 leaves them as they are."""

    def __init__(self, width: int) -> None:
        self._limit = width - MARGIN if width >= MIN_WIDTH else 0
        self._column = 0
        self._word = ""

    def feed(self, text: str) -> str:
        """What to print for *text*."""
        return "".join(map(self._character, text)) if self._limit else text

    def _character(self, character: str) -> str:
        width = display_width(character)
        printed = character
        if self._column + width > self._limit and not character.isspace():
            printed = self._broken(character)
        else:
            self._column += width
        if character == "\n":
            self._column, self._word = 0, ""
        elif character.isspace() or width > 1:
            self._word = ""
        else:
            self._word += character
        return printed

    def _broken(self, character: str) -> str:
        """Begin a new line with the word that *character* belongs to, unless no line could hold it."""
        word, length = self._word, display_width(self._word)
        if length >= self._limit - MARGIN or length == self._column:
            word, length = "", 0
        erase = f"\x1b[{length}D\x1b[K" if length else ""
        self._column = length + display_width(character)
        return f"{erase}\n{word}{character}"

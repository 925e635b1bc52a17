r"""Text that came from elsewhere, made safe for a terminal and a log.

A terminal acts on control characters: ESC starts a sequence that moves the cursor, sets the window's title or the
clipboard; C1 (U+0080..U+009F) does the same in one character; BEL rings. Marks of writing direction (U+202A..U+202E,
U+2066..U+2069) make a line read other than it is. They come out as the escapes that Python would write, ``\x1b``,
so that a reader sees what was sent. Half of a surrogate pair becomes U+FFFD, a whole one its character.
"""

from __future__ import annotations

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_NAMED = {"\n": " ", "\r": " ", "\t": " "}


def printable_line(text: str, limit: int = 0) -> str:
    """*text* on one line, with nothing in it that a terminal acts on; cut to *limit* characters unless that is 0."""
    line = _IN_LINE.sub(_escaped, whole_characters(text))
    return f"{line[: limit - 1]}…" if 0 < limit < len(line) else line


def printable_text(text: str) -> str:
    """*text* over several lines: line ends and tabs stay, carriage returns go, the rest as in :func:`printable_line`.

    Marks of direction stay: texts in Arabic and Hebrew need them.
    """
    return _IN_TEXT.sub(_in_text, whole_characters(text))


def whole_characters(text: str) -> str:
    """*text* with U+FFFD for each half surrogate pair and each byte that was not UTF-8; a pair is its character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _in_text(match: re.Match[str]) -> str:
    return "" if match[0] == "\r" else _escaped(match)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _NAMED.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

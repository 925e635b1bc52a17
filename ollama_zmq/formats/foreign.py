"""Text from outside: lone surrogates, which JSON and file names can bring and UTF-8 cannot hold, become U+FFFD."""

from __future__ import annotations


def without_surrogates(text: str) -> str:
    """*text* with U+FFFD for every lone surrogate; a pair of them is the character it stands for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text

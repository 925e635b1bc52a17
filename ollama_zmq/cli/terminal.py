"""The three standard streams: what is read is never undecodable, what is written never acts on a terminal.

Commands print with :func:`say`, and nothing but their own words reaches a stream by another way. Bytes are UTF-8 both
ways, as Ollama's are, also where the locale says otherwise.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import IO, Any

import click

from ollama_zmq.printable import printable_text, whole_characters

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def prepare_streams() -> None:
    """Let no character be an error: stdout writes UTF-8 into pipes and files, and ``?`` for what cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            own = is_terminal(stream) or "PYTHONIOENCODING" in os.environ
            stream.reconfigure(encoding=None if own else "utf-8", errors="replace")


def is_terminal(*streams: IO[Any] | None) -> bool:
    """Whether all of *streams* are terminals; one that is closed (``>&-``) is none."""
    return all(stream is not None and not stream.closed and stream.isatty() for stream in streams)


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print *text*; control characters in it come out as escapes."""
    click.echo(printable_text(text), err=err, nl=nl)


def say_text(text: str, *, nl: bool = True) -> None:
    """Print a model's text or answer: unchanged into a pipe or file, as :func:`say` does on a terminal."""
    click.echo(printable_text(text) if is_terminal(sys.stdout) else whole_characters(text), nl=nl, color=True)


def read_stdin() -> str:
    """All of stdin: "" when it is closed, U+FFFD in place of what is not UTF-8, without a byte order mark."""
    if sys.stdin is None or sys.stdin.closed:
        return ""
    return decode_text(sys.stdin.buffer.read())


def decode_text(data: bytes) -> str:
    """*data* as text: UTF-8, or the UTF-16 and UTF-32 that a byte order mark tells of, as PowerShell's ``>`` writes."""
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "utf-8")
    return data.decode(encoding, "replace")

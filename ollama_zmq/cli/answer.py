"""Shows an answer while it comes: thinking apart from content, words wrapped, timings at the end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from ollama_zmq.cli.wordwrap import WordWrap
from ollama_zmq.durations import format_duration

Json = dict[str, Any]


class Answer:
    """Prints the chunks of one answer to stdout.

    Attributes:
        content: all of it so far, without the thinking.
        last: the latest chunk, with the counts once the answer is done.
    """

    def __init__(self, *, wraps: bool, hides_thinking: bool = False) -> None:
        self.content = ""
        self.last: Json = {}
        self._width = shutil.get_terminal_size().columns if wraps and sys.stdout.isatty() else 0
        self._wrap = WordWrap(self._width)
        self._hides_thinking = hides_thinking
        self._thinks = False

    def show(self, chunks: Generator[Json, None, None]) -> None:
        """Print *chunks* as they come; whatever is raised meanwhile cancels the request."""
        with closing(chunks):
            with waiting():
                first = next(chunks, None)
            if first is not None:
                self._add(first)
            for chunk in chunks:
                self._add(chunk)

    def _add(self, chunk: Json) -> None:
        self.last = chunk
        message = chunk.get("message", chunk)
        thinking, content = message.get("thinking", ""), message.get("content", chunk.get("response", ""))
        if thinking and not self._hides_thinking:
            self._print(thinking if self._thinks else f"Thinking...\n{thinking}")
            self._thinks = True
        if content:
            if self._thinks:
                self._print("\n...done thinking.\n\n")
                self._thinks, self._wrap = False, WordWrap(self._width)
            self.content += content
            self._print(content)

    def _print(self, text: str) -> None:
        click.echo(self._wrap.feed(text), nl=False)


@contextmanager
def waiting() -> Iterator[None]:
    """Show that something is on its way, where somebody watches."""
    if not (sys.stderr.isatty() and sys.stdout.isatty()):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(""):
        yield


def timings(last: Json) -> str:
    """The counts of a finished answer, as ``--verbose`` prints them."""
    lines = [
        _line(f"{name} duration", format_duration(last[f"{name}_duration"]))
        for name in ("total", "load")
        if last.get(f"{name}_duration")
    ]
    for field, name in (("prompt_eval", "prompt eval"), ("eval", "eval")):
        count, nanoseconds = last.get(f"{field}_count", 0), last.get(f"{field}_duration", 0)
        if count:
            lines.append(_line(f"{name} count", f"{count} token(s)"))
        if nanoseconds:
            lines.append(_line(f"{name} duration", format_duration(nanoseconds)))
            lines.append(_line(f"{name} rate", f"{count / nanoseconds * 1e9:.2f} tokens/s"))
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name + ':':<21} {value}"

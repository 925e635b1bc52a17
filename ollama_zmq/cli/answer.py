"""Shows an answer while it comes: thinking apart from content, words wrapped, timings at the end."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import click

from ollama_zmq.cli.tables import paragraph
from ollama_zmq.cli.terminal import is_terminal
from ollama_zmq.cli.wordwrap import WordWrap
from ollama_zmq.client import Client
from ollama_zmq.durations import format_duration
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.printable import printable_line, printable_text, whole_characters

Json = dict[str, Any]
GREY_BOLD, GREY, DEFAULT = "\x1b[38;5;245m\x1b[1m", "\x1b[0m\x1b[38;5;245m", "\x1b[0m"


class Answer:
    """Prints the chunks of one answer to stdout: as they are into a pipe, printable and wrapped on a terminal.

    Attributes:
        content: all of it so far, without the thinking.
        last: the latest chunk, with the counts once the answer is done.
    """

    def __init__(self, *, wraps: bool, hides_thinking: bool = False) -> None:
        self.content = ""
        self.last: Json = {}
        self._on_terminal = is_terminal(sys.stdout)
        self._width = shutil.get_terminal_size().columns if wraps and self._on_terminal else 0
        self._wrap = WordWrap(self._width)
        self._hides_thinking = hides_thinking
        self._thinks = False
        self._begins_line = True

    def show(self, chunks: Generator[Json, None, None]) -> None:
        """Print *chunks* as they come; what is raised meanwhile cancels the request, and begins a new line."""
        with self._own_lines(), closing(chunks):
            with waiting():
                first = next(chunks, None)
            if first is not None:
                self._add(first)
            for chunk in chunks:
                self._add(chunk)

    def _add(self, chunk: Json) -> None:
        self.last = chunk
        thinking, content = _texts(chunk)
        if thinking and not self._hides_thinking:
            if not self._thinks:
                self._style(GREY_BOLD)
                self._print("Thinking...\n")
                self._style(GREY)
            self._print(thinking)
            self._thinks = True
        if content:
            if self._thinks:
                self._style(GREY_BOLD)
                self._print("\n...done thinking.\n\n")
                self._style(DEFAULT)
                self._thinks, self._wrap = False, WordWrap(self._width)
            self.content += content
            self._print(content)

    def _print(self, text: str) -> None:
        shown = printable_text(text) if self._on_terminal else whole_characters(text)
        click.echo(self._wrap.feed(shown), nl=False, color=True)
        self._begins_line = text.endswith("\n")

    def _style(self, code: str) -> None:
        if self._on_terminal:
            click.echo(code, nl=False, color=True)

    @contextmanager
    def _own_lines(self) -> Iterator[None]:
        """Let what is printed after an exception not stand behind half a line, nor in the grey of thoughts."""
        try:
            yield
        except BaseException:
            if self._thinks:
                self._style(DEFAULT)
            if not self._begins_line:
                click.echo()
            raise


def _texts(chunk: Json) -> tuple[str, str]:
    """Thinking and content of a chunk, of a chat or a completion."""
    message = chunk.get("message")
    fields = message if isinstance(message, dict) else {**chunk, "content": chunk.get("response")}
    return str(fields.get("thinking") or ""), str(fields.get("content") or "")


@contextmanager
def waiting(what: str = "") -> Iterator[None]:
    """Show that something is on its way, where somebody watches: a spinner, with *what* beside it."""
    if not is_terminal(sys.stderr, sys.stdout):
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable_line(what))):
        yield


def show_missing(client: Client, model: str) -> None:
    """Tell whoever watches, in grey, which workers of the list have no part in *model*, and why."""
    if not is_terminal(sys.stderr):
        return
    with suppress(OllamaZmqError):  # another server than ours knows no workers
        for loaded in client.cluster()["models"]:
            if loaded["name"] in (model, f"{model}:latest"):
                for why in loaded.get("missing", []):
                    click.echo(f"{GREY}{paragraph(f'without {why}')}{DEFAULT}", err=True)


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

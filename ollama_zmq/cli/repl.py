"""The ``>>>`` of ``ollama run``: reads lines with prompt_toolkit, keeps their history, and feeds a Session."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_zmq.cli.answer import show_missing, waiting
from ollama_zmq.cli.session import MORE, PROMPT, Session
from ollama_zmq.cli.terminal import say
from ollama_zmq.config import Config
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.printable import whole_characters

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PLACEHOLDER = "Send a message (/? for help)"
HISTORY = Path(".ollama", "zmq_history")  # Ollama's own "history" has another format


def converse(session: Session, info: dict[str, Any]) -> None:
    """Load the session's model and talk until Ctrl-D or ``/bye``. Example messages in its *info* are shown first."""
    from prompt_toolkit.formatted_text import FormattedText

    with waiting():
        session.client.load(session.model, **session.fields)
    show_missing(session.client, session.model)
    for message in info.get("messages", []):
        if message["role"] != "system":
            say(f"{PROMPT if message['role'] == 'user' else ''}{message['content']}\n")
    keyboard = _keyboard(session)
    hint = FormattedText([("fg:ansibrightblack", PLACEHOLDER)])
    while True:
        try:
            line = keyboard.prompt(session.prompt, placeholder=hint if session.prompt == PROMPT else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            session.interrupt(keyboard.default_buffer.text)
            continue
        if not session.feed(line):
            return


def _keyboard(session: Session) -> PromptSession[str]:
    """Lines from the terminal; a pasted text of several lines is one message, each line but the first after ``...``."""
    from prompt_toolkit import PromptSession

    return PromptSession(history=_history(session), key_bindings=_bindings(), prompt_continuation=MORE)


def _history(session: Session) -> History:
    """Earlier lines, kept in the user's home unless the user or the disk does not want it."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Kept(FileHistory):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return list(super().load_history_strings())
            except OSError:
                return []

        def store_string(self, string: str) -> None:
            if session.keeps_history:
                try:
                    super().store_string(whole_characters(string))
                except OSError as error:
                    session.keeps_history = False
                    say(f"history is not kept: {error}", err=True)

    if Config.from_environment(os.environ).no_history:
        return InMemoryHistory()
    try:
        path = Path.home() / HISTORY
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except (OSError, RuntimeError) as error:
        say(f"history is not kept: {error}", err=True)
        return InMemoryHistory()
    return Kept(str(path))


def _bindings() -> KeyBindings:
    """Ctrl-G edits what was typed in an editor."""
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("c-g")
    def edit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer

        def change() -> None:
            from ollama_zmq.cli.editor import edited

            try:
                buffer.text = edited(buffer.text)
                buffer.cursor_position = len(buffer.text)
            except OllamaZmqError as error:
                say(f"Error: {error.message}", err=True)

        run_in_terminal(change)

    return bindings

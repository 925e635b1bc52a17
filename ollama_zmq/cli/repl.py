"""The ``>>>`` of ``ollama run``: reads lines with prompt_toolkit, keeps their history, and feeds a Session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ollama_zmq.cli.answer import waiting
from ollama_zmq.cli.session import PROMPT, Session
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.config import Config

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PLACEHOLDER = "Send a message (/? for help)"
HISTORY = Path(".ollama", "history")


def converse(client: Client, model: str, info: dict[str, Any], fields: dict[str, Any], **shown: bool) -> None:
    """Load *model* and talk until Ctrl-D or ``/bye``. Its example messages are shown first."""
    from prompt_toolkit.formatted_text import FormattedText

    session = Session(client, model, fields, **shown)
    with waiting():
        client.load(model, **session.fields)
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
    """Lines from the terminal. They are kept in ``~/.ollama/history`` unless the user or the disk does not want it."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    class History(FileHistory):
        def store_string(self, string: str) -> None:
            if session.keeps_history:
                super().store_string(string)

    if Config.from_environment(os.environ).no_history:
        return PromptSession()
    path = Path.home() / HISTORY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        say(f"history is not kept: {error}", err=True)
        return PromptSession()
    return PromptSession(history=History(str(path)))

"""An editor of the user's own choice, for a message that is too long for a prompt."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from ollama_zmq.cli.terminal import decode_text
from ollama_zmq.config import Config
from ollama_zmq.errors import RequestError
from ollama_zmq.printable import whole_characters

FALLBACKS = ("editor", "nano", "vi", "notepad.exe")


def edited(text: str) -> str:
    """*text* as an editor leaves it, without the line end that editors add; unchanged if the editor fails.

    Raises:
        RequestError: there is no editor, or it cannot be started.
    """
    command = editor_command()
    with tempfile.TemporaryDirectory(prefix="ollama-") as folder:
        path = Path(folder, "message.txt")
        path.write_text(whole_characters(text), encoding="utf-8")
        try:
            done = subprocess.run([*command, str(path)], check=False)
        except OSError as error:
            raise RequestError(f"cannot start the editor {command[0]!r}: {error.strerror}; set OLLAMA_EDITOR") from None
        if done.returncode:
            return text
        return decode_text(path.read_bytes()).rstrip("\r\n")


def editor_command() -> list[str]:
    """The words of OLLAMA_EDITOR, VISUAL or EDITOR, else an editor that is there.

    Raises:
        RequestError: there is none.
    """
    own = Config.from_environment(os.environ).editor or os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if own:
        try:
            words = shlex.split(own)
        except ValueError:
            words = [own]
        if words:
            return words
    for name in FALLBACKS:
        if found := shutil.which(name):
            return [found]
    raise RequestError("no editor was found: set OLLAMA_EDITOR to the command of one")

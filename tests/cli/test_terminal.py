"""Commands at a real terminal, as far as a pseudo-terminal is one."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from ollama_zmq.cli.editor import edited
from ollama_zmq.cli.repl import HISTORY
from ollama_zmq.errors import RequestError
from tests.cli.test_run import prompt_of

pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
LIMIT_S = 60.0
ENTRY = "from ollama_zmq.cli import main; main()"
CTRL_C, CTRL_D, CTRL_G = "\x03", "\x04", "\x07"


class Terminal:
    """What a person sees and types."""

    def __init__(self, screen):
        self.screen, self.seen = screen, ""

    def until(self, text):
        """Read until *text* has come since the last call."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen:
            ready, _, _ = select.select([self.screen], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} did not come: {self.seen!r}"
            self.seen += os.read(self.screen, 65536).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text):
        os.write(self.screen, text.encode())


@contextmanager
def at_terminal(home, *arguments, stdout=None, **environment):
    screen, inside = pty.openpty()
    settings = {"HOME": str(home), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", **environment}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", ENTRY, *arguments],
        stdin=inside,
        stdout=stdout or inside,
        stderr=inside,
        env=os.environ | settings,
        start_new_session=True,
    )
    os.close(inside)
    try:
        yield Terminal(screen), process
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    path.mkdir()
    return path


def test_a_conversation_with_an_editor_a_paste_and_a_history_of_its_own(server, broker, home):
    with at_terminal(home, "run", "tiny", OLLAMA_EDITOR="sed -i s/xx/you/") as (terminal, process):
        terminal.until(">>> ")
        terminal.type("Hi xx" + CTRL_G)
        terminal.until("you")
        terminal.type("\r")
        terminal.until("Hello there!")
        assert "user\nHi you<|im_end|>" in prompt_of(broker)
        terminal.until(">>> ")
        terminal.type("\x1b[200~one\ntwo\x1b[201~")
        terminal.until("...")
        terminal.type("\r")
        terminal.until("Hello there!")
        assert "user\none\ntwo<|im_end|>" in prompt_of(broker)
        terminal.until(">>> ")
        terminal.type('"""half\r')
        terminal.until("...")
        terminal.type(CTRL_C)
        terminal.until("Use Ctrl + d or /bye to exit.")
        terminal.until(">>> ")
        terminal.type(CTRL_D)
        assert process.wait(LIMIT_S) == 0
    assert "+Hi you\n" in (home / HISTORY).read_text()
    assert [path.name for path in (home / ".ollama").iterdir()] == [HISTORY.name]


def test_without_history_nothing_is_written(server, broker, home):
    with at_terminal(home, "run", "tiny", OLLAMA_NOHISTORY="1") as (terminal, process):
        terminal.until(">>> ")
        terminal.type("/bye\r")
        assert process.wait(LIMIT_S) == 0
    assert list(home.iterdir()) == []


def test_an_answer_into_a_pipe_is_no_conversation(server, broker, home):
    with at_terminal(home, "run", "tiny", stdout=subprocess.PIPE) as (_, process):
        assert process.communicate(timeout=LIMIT_S)[0] == b""
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("editor", "text"),
    [("sed -i s/a/o/", "cot"), ("false", "cat"), ("sh -c 'printf \"\\351\\n\" > $0'", "\ufffd")],
)
def test_a_text_is_as_the_editor_leaves_it(monkeypatch, editor, text):
    monkeypatch.setenv("OLLAMA_EDITOR", editor)
    assert edited("cat") == text


def test_an_editor_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("OLLAMA_EDITOR", "/no/such/editor")
    with pytest.raises(RequestError, match=r"cannot start the editor '/no/such/editor': .*; set OLLAMA_EDITOR"):
        edited("cat")


def test_what_create_has_sent_stays_on_the_terminal(server, store, home):
    (home / "m.gguf").write_bytes(store.get("tiny").gguf_path.read_bytes() + b"\0" * 32)
    (home / "Modelfile").write_text("FROM ./m.gguf")
    arguments = ("create", "mine", "-f", str(home / "Modelfile"))
    with at_terminal(home, *arguments, OLLAMA_HOST=server, COLUMNS="100") as (terminal, _):
        shown = terminal.until("success")
    left = shown.rpartition("\x1b[2K")[2]  # behind the last line that was erased
    assert re.search(r"copying file sha256:[0-9a-f]{12}\W.*100%", left)
    assert "reading m.gguf" not in left

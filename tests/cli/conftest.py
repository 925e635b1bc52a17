"""The command line against a real server over a fake broker, as a user at a shell would see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from ollama_zmq import log
from ollama_zmq.cli import run_root
from ollama_zmq.store.models import Store
from tests.server.conftest import broker, store, tiny_store  # noqa: F401 -- fixtures
from tests.server.fake_broker import FakeBroker
from tests.server.live import live_server


@dataclass(frozen=True)
class Printed:
    """What a command left behind."""

    code: int
    out: str
    err: str


Ollama = Callable[..., Printed]


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """What is logged, by the server in this process too, kept out of what commands print."""
    monkeypatch.setattr(log, "configure", lambda: None)
    with structlog.testing.capture_logs() as entries:
        yield entries  # type: ignore[misc]


@pytest.fixture
def server(broker: FakeBroker, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:  # noqa: F811
    """The URL of a server, which OLLAMA_HOST names."""
    with live_server(broker, store) as url:
        monkeypatch.setenv("OLLAMA_HOST", url)
        yield url


@pytest.fixture
def ollama(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ollama:
    """Runs ``ollama ARGUMENTS`` in this process, in a home of its own, with *stdin* as its input."""
    import io
    import sys

    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments: str, stdin: str | bytes = "") -> Printed:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        code = run_root(arguments)
        printed = capsys.readouterr()
        return Printed(code, printed.out, printed.err)

    return run

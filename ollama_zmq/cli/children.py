"""Our own commands as child processes, for the demo, the benchmarks and the tests; none is ever left behind.

Each child leads a session of its own, so Ctrl-C reaches the parent only and the parent ends the others in order. They
end when the ``with`` block does; on Linux the kernel also ends them when the parent dies in a way no block survives
(kill -9). What a child prints goes to a file, whose last line explains why it did not come up.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ollama_zmq.errors import OllamaZmqError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.01
_ENTRY = """
import sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
from ollama_zmq.cli import main
main()
"""


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections at *port* of the loopback address."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


@dataclass(slots=True)
class Child:
    """One running command.

    Attributes:
        name: the command as it is shown in errors.
        log: the file that takes its stdout and stderr.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when *ready* says so.

        Raises:
            OllamaZmqError: the child exited first, or *timeout_s* passed.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.process.poll() is not None:
                raise OllamaZmqError(f"{self.name} exited with code {self.process.returncode}: {self._last_line()}")
            if time.monotonic() > deadline:
                raise OllamaZmqError(f"{self.name} did not start within {timeout_s:g} s: {self._last_line()}")
            time.sleep(_POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and whatever it started, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.pid, number)

    def _last_line(self) -> str:
        lines = self.output.strip().splitlines()
        return lines[-1].strip() if lines else "it printed nothing"


class Children:
    """The commands that were started; a context manager that ends them all, the youngest first."""

    def __init__(self) -> None:
        self.running: list[Child] = []
        self._folder = tempfile.TemporaryDirectory(prefix="ollama-zmq-", ignore_cleanup_errors=True)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> Child:
        """Run ``ollama ARGUMENTS``, with *env* on top of this process's environment."""
        return self.run([sys.executable, "-P", "-c", _ENTRY, *arguments], f"ollama {' '.join(arguments)}", env)

    def run(self, command: Sequence[str], name: str, env: Mapping[str, str] | None = None) -> Child:
        """Run any other *command*, called *name* in errors."""
        log = Path(self._folder.name, f"{len(self.running)}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.running.append(child)
        return child

    def start_worker(self, *, threads: int = 0, memory_mb: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Start a worker that listens on a free loopback port and return its address; 0 leaves a limit to the worker.

        Raises:
            OllamaZmqError: it did not come up.
        """
        port = free_port()
        limits = [("--threads", threads), ("--mem", memory_mb)]
        options = [text for option, value in limits if value for text in (option, str(value))]
        child = self.start("rpc-server", "--port", str(port), *options, env=env)
        child.wait_until(lambda: is_listening(port))
        return f"127.0.0.1:{port}"

    def start_server(self, workers: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
        """Start ``ollama serve`` over *workers* on a free loopback port and return its URL.

        Raises:
            OllamaZmqError: it did not come up.
        """
        port = free_port()
        settings = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_RPC_SERVERS": ",".join(workers)}
        child = self.start("serve", env={**settings, **(env or {})})
        child.wait_until(lambda: is_listening(port))
        return f"http://127.0.0.1:{port}"

    def close(self) -> None:
        """End every child: ask first, kill what is still there after :data:`STOP_TIMEOUT_S`."""
        for child in reversed(self.running):
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in reversed(self.running):
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(deadline - time.monotonic(), 0))
            child.signal(signal.SIGKILL)
            child.process.wait()
        self.running.clear()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

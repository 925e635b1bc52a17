"""The process of ``ollama serve``: its socket, its signals, and its end.

The first SIGINT, SIGTERM or SIGHUP ends running streams with an error line, lets their connections close and closes the
broker; the second one does not wait. Neither leaves a traceback.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from ollama_zmq.config import Config
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.host import Address
from ollama_zmq.server.acceptor import accept_connections
from ollama_zmq.server.app import make_app
from ollama_zmq.server.connections import KEEP_ALIVE_S, HttpConnection
from ollama_zmq.version import VERSION

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ollama_zmq.server.services import Services

log = structlog.get_logger()

GRACE_S = 5
SEND_BUFFER_BYTES = 32 << 10  # of a connection; Linux would take 4 MB, 40,000 tokens, for one that does not read
MANY_FILES = 10240  # the most that every macOS takes
FEW_FILES = 1024
SPARE_FILES = 16
MIN_CONNECTIONS = 4


def listen(config: Config) -> socket.socket:
    """A socket that accepts connections where the configuration says.

    Raises:
        OllamaZmqError: somebody else does already, or the host is unknown or not one of this machine's; the message
            says what to do.
    """
    host, port = config.host.host or "0.0.0.0", config.host.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OllamaZmqError(f"listen tcp {config.host.netloc}: {reason}; check OLLAMA_HOST") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _bind_error(error, config) from None
    return listener


def _bind_error(error: OSError, config: Config) -> OllamaZmqError:
    where = f"listen tcp {config.host.netloc}: bind: {(error.strerror or str(error)).lower()}"
    if error.errno == errno.EADDRINUSE:
        return OllamaZmqError(f"{where}; stop the server that runs there, or set OLLAMA_HOST to another port")
    return OllamaZmqError(f"{where}; check OLLAMA_HOST")


def allow_files() -> int:
    """How many files this process may have open, once it has asked for as many as it may get; 0 for any number.

    A shell or systemd allows 1024 at first (macOS 256, of ``MANY_FILES`` or more), and every client that waits is one.
    """
    if sys.platform == "win32":
        return 0
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = max(soft, MANY_FILES if hard == resource.RLIM_INFINITY else hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(soft, 0)


class Server(uvicorn.Server):
    """uvicorn with limits on connections, and without its signal handling: :func:`serve` has its own.

    Args:
        max_files: that this process may open; 0 for any number.
    """

    def __init__(self, config: uvicorn.Config, max_files: int = 0) -> None:
        super().__init__(config)
        self._max_files = max_files
        self._accepting: list[asyncio.Task[None]] = []

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections of *sockets*, which listen."""
        await super().startup(sockets=[])
        self._limit_connections()
        self._accepting = [
            asyncio.create_task(accept_connections(listener, self._protocol, self._has_room))
            for listener in sockets or ()
        ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and close what is open."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def _protocol(self) -> HttpConnection:
        return HttpConnection(self.config, self.server_state, self.lifespan.state)

    def _has_room(self) -> bool:
        """Whether there are files for another connection, to be answered or refused."""
        limit = self.config.limit_concurrency
        return limit is None or len(self.server_state.connections) < limit + SPARE_FILES // 2

    def _limit_connections(self) -> None:
        self.config.limit_concurrency = max_connections(self._max_files, len(self.server_state.connections))

    async def on_tick(self, counter: int) -> bool:
        """Once a second, close the connections whose time is over and count how many there may be."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, HttpConnection):
                    connection.expire(now)
            self._limit_connections()
        return await super().on_tick(counter)


def max_connections(max_files: int, n_connections: int) -> int | None:
    """How many connections there may be when a process may open *max_files*; None for any number.

    Where files are few, those that are open for other things are counted, and some are kept for models and workers.
    """
    if max_files >= FEW_FILES:
        return max_files * 3 // 4
    if max_files == 0:
        return None
    n_others = len(os.listdir("/dev/fd")) - n_connections
    return max(MIN_CONNECTIONS, max_files - n_others - SPARE_FILES)


def http_settings(app: Starlette) -> uvicorn.Config:
    """How uvicorn serves *app*."""
    return uvicorn.Config(
        app,
        http=HttpConnection,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def serve(config: Config) -> None:
    """Listen, serve until a signal comes, and clean up.

    Raises:
        OllamaZmqError: the port is in use, or the address is wrong.
    """
    for warning in config.warnings:
        log.warning("setting.ignored", reason=warning)
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(_serve(config, allow_files()))


async def _serve(config: Config, max_files: int) -> None:
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = make_app(config, lambda: _open_services(config), fail)
    server = Server(http_settings(app), max_files)
    _stop_on_signals(server, app)  # before anybody can see the port open
    listener = listen(config)
    bound = Address("http", *listener.getsockname()[:2])
    log.info("server.started", url=f"http://{bound.netloc}", models_dir=str(config.models), version=VERSION)
    await server.serve(sockets=[listener])
    if failures:
        raise failures[0]
    log.info("server.stopped")


def _open_services(config: Config) -> Services:
    from ollama_zmq.server.services import open_services

    return open_services(config)


def _stop_on_signals(server: Server, app: Starlette) -> None:
    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        opening = getattr(app.state, "services", None)
        if opening is not None and opening.done() and opening.exception() is None:
            opening.result().stop()

    loop = asyncio.get_running_loop()
    hang_up = getattr(signal, "SIGHUP", None)  # the terminal was closed; nohup has it ignored
    hears = hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN
    for number in (signal.SIGINT, signal.SIGTERM, *([hang_up] if hears else ())):
        try:
            loop.add_signal_handler(number, stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))

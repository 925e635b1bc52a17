"""A plain TCP look at an address before ZeroMQ connects to it: does a ZMTP 3 peer listen there?

Both sides of a ZMTP 3 connection begin with ten bytes: FF, eight of padding, 7F. The probe connects, sends them (a
service that waits for a request then answers, too), reads ten and closes. What answers otherwise never meets libzmq,
which would dial a stranger again and again, and whose older protocols have let a stranger end the process
(``docs/security.md``). It also tells apart what libzmq's monitor does not:

    Outcome       Seen                                          Usually
    GREETED       the ten bytes                                 a worker
    REFUSED       a refused connection                          nothing listens on that port
    UNREACHABLE   no route, no network, host down               the machine is off, or in another network
    NO_ANSWER     nothing within CONNECT_TIMEOUT_S              the machine is off, or a firewall swallows it
    SILENT        a connection, no byte in GREETING_TIMEOUT_S   a stopped process, or a service that waits
    STRANGER      other bytes                                   another service: HTTP, llama.cpp's rpc-server
    ENDED         the end of the connection before ten bytes    a process that starts or ends, or a stranger

Sockets do not block; whoever polls :meth:`Probes.fileno` is woken when something happened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
from dataclasses import dataclass
from enum import Enum, auto

CONNECT_TIMEOUT_S = 2.0
GREETING_TIMEOUT_S = 2.0
SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"

_STARTED = frozenset({0, errno.EINPROGRESS, errno.EWOULDBLOCK})
_REFUSED = frozenset({errno.ECONNREFUSED, errno.ECONNRESET})


class Outcome(Enum):
    """What a probe found, as in the table above."""

    GREETED = auto()
    REFUSED = auto()
    UNREACHABLE = auto()
    NO_ANSWER = auto()
    SILENT = auto()
    STRANGER = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Probed:
    """The end of a probe. ``detail``: the system's words for an error, else ""."""

    key: str
    outcome: Outcome
    detail: str = ""


@dataclass(slots=True)
class _Probe:
    key: str
    socket: socket.socket
    deadline: float
    connected: bool = False
    received: bytes = b""


class Probes:
    """Probes that are under way, each known by a key of the caller's. One thread uses it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._probes: dict[str, _Probe] = {}
        self._ended: list[Probed] = []

    def fileno(self) -> int:
        """Return the descriptor that is readable when :meth:`advance` has something to do."""
        fileno: int = self._selector.fileno()  # of epoll and kqueue alike
        return fileno

    def start(self, key: str, endpoint: str, now: float) -> None:
        """Begin to probe *endpoint*, "tcp://address:port"; :meth:`advance` returns how it ended, under *key*."""
        self.cancel(key)
        try:
            family, where = _numeric(endpoint)
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            self._ended.append(_failed(key, error.errno or 0))
            return
        sock.setblocking(False)
        code = sock.connect_ex(where)
        if code not in _STARTED:
            sock.close()
            self._ended.append(_failed(key, code))
            return
        self._probes[key] = probe = _Probe(key, sock, now + CONNECT_TIMEOUT_S)
        self._selector.register(sock, selectors.EVENT_WRITE, probe)

    def cancel(self, key: str) -> None:
        """Forget a probe, if there is one of that *key*."""
        self._ended = [probed for probed in self._ended if probed.key != key]
        if (probe := self._probes.pop(key, None)) is not None:
            self._selector.unregister(probe.socket)
            probe.socket.close()

    def advance(self, now: float) -> list[Probed]:
        """Go on with every probe and return those that ended. Does not wait."""
        for key, _ in self._selector.select(0) if self._probes else ():
            probe: _Probe = key.data
            self._end(probe, self._go_on(probe, now))
        for probe in [probe for probe in self._probes.values() if now >= probe.deadline]:
            self._end(probe, Probed(probe.key, Outcome.SILENT if probe.connected else Outcome.NO_ANSWER))
        ended, self._ended = self._ended, []
        return ended

    def next_deadline(self) -> float:
        """Return when :meth:`advance` must be called though nothing has happened; infinity for never."""
        if self._ended:
            return 0.0
        return min((probe.deadline for probe in self._probes.values()), default=float("inf"))

    def close(self) -> None:
        """Cancel every probe and close the descriptor."""
        for key in list(self._probes):
            self.cancel(key)
        self._selector.close()

    def _end(self, probe: _Probe, probed: Probed | None) -> None:
        if probed is not None:
            self.cancel(probe.key)
            self._ended.append(probed)

    def _go_on(self, probe: _Probe, now: float) -> Probed | None:
        """Take the next step of one probe whose socket is ready; None while it is not over."""
        if not probe.connected:
            return self._on_connected(probe, now)
        try:
            more = probe.socket.recv(len(SIGNATURE) - len(probe.received))
        except BlockingIOError:
            return None
        except OSError as error:
            return Probed(probe.key, Outcome.ENDED, os.strerror(error.errno or 0).lower())
        probe.received += more
        if not more:
            return Probed(probe.key, Outcome.ENDED)
        is_whole = len(probe.received) == len(SIGNATURE)
        if probe.received[0] != SIGNATURE[0] or (is_whole and probe.received[-1] != SIGNATURE[-1]):
            return Probed(probe.key, Outcome.STRANGER)
        return Probed(probe.key, Outcome.GREETED) if is_whole else None

    def _on_connected(self, probe: _Probe, now: float) -> Probed | None:
        code = probe.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return _failed(probe.key, code)
        if probe.socket.getsockname() == probe.socket.getpeername():
            return Probed(probe.key, Outcome.REFUSED)  # TCP connects a socket to itself when the port is its own
        probe.connected, probe.deadline = True, now + GREETING_TIMEOUT_S
        self._selector.modify(probe.socket, selectors.EVENT_READ, probe)
        with contextlib.suppress(OSError):  # what is wrong with it shows when it is read
            probe.socket.send(SIGNATURE)
        return None


def _failed(key: str, code: int) -> Probed:
    if code == errno.ETIMEDOUT:
        return Probed(key, Outcome.NO_ANSWER)
    return Probed(key, Outcome.REFUSED if code in _REFUSED else Outcome.UNREACHABLE, os.strerror(code).lower())


def _numeric(endpoint: str) -> tuple[int, tuple[object, ...]]:
    """The family and socket address of "tcp://address:port". A name is not looked up."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=flags)
    return found[0][0], found[0][4]

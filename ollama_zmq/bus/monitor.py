"""What happens to the connections of a socket, read from libzmq's monitor."""

from __future__ import annotations

from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message


@dataclass(frozen=True, slots=True)
class Listening:
    """A bound socket listens."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A bound socket took a TCP connection; *fd* names it until it is disconnected."""

    fd: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket that connects has a TCP connection; *fd* names it until it is disconnected."""

    endpoint: str
    fd: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The ZeroMQ handshake is done; messages flow."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A TCP connection is gone. libzmq does not say why: closed by the peer, heartbeat, or a frame too large."""

    endpoint: str
    fd: int


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """The other side is not a ZeroMQ peer of ours, or refuses us.

    Attributes:
        kind: "auth" (refused through ZAP), "protocol" (it does not speak ZeroMQ) or "closed".
        code: 400, a number of libzmq, or an errno.
    """

    endpoint: str
    kind: str
    code: int


@dataclass(frozen=True, slots=True)
class Retried:
    """The connection was not made; libzmq tries again in so many milliseconds. It does not tell the errno."""

    endpoint: str
    after_ms: int


SocketEvent = Listening | Accepted | Opened | Connected | Disconnected | HandshakeFailed | Retried

_WATCHED = (
    zmq.EVENT_LISTENING
    | zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CONNECT_RETRIED
)


class Monitor:
    """What happens to the connections of one socket. ``socket`` may be polled; one thread uses it and closes it.

    It must be read: libzmq's I/O thread waits for a reader after some 2,000 events. May be opened by another thread
    than the one that reads it. The events of every endpoint of a ROUTER come here;
    ``endpoint`` tells them apart.
    """

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        self.socket: zmq.Socket[bytes] = watched.get_monitor_socket(_WATCHED)

    def events(self) -> list[SocketEvent]:
        """Return what happened since the last call, oldest first. Does not wait."""
        found: list[SocketEvent] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            event = _event_of(frames)
            if event is not None:
                found.append(event)

    def close(self) -> None:
        """Close the pair. The watched socket must be closed by its owner, before or after."""
        self.socket.close(0)


def _event_of(frames: list[bytes]) -> SocketEvent | None:
    parsed = parse_monitor_message(frames)
    endpoint, value = parsed["endpoint"].decode(errors="replace"), int(parsed["value"])
    match parsed["event"]:
        case zmq.EVENT_LISTENING:
            return Listening()
        case zmq.EVENT_ACCEPTED:
            return Accepted(value)
        case zmq.EVENT_CONNECTED:
            return Opened(endpoint, value)
        case zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return Connected(endpoint)
        case zmq.EVENT_DISCONNECTED:
            return Disconnected(endpoint, value)
        case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return HandshakeFailed(endpoint, "auth", value)
        case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return HandshakeFailed(endpoint, "protocol", value)
        case zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            return HandshakeFailed(endpoint, "closed", value)
        case zmq.EVENT_CONNECT_RETRIED:
            return Retried(endpoint, value)
        case _:
            return None

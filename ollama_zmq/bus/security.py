"""The ZAP authenticator of a worker (RFC 27), and what is said when it listens beyond loopback.

libzmq asks it about every connection in the ZMTP handshake. While nobody is served it admits whoever comes
(:mod:`ollama_zmq.bus.admission`), then it refuses with status 400; 300 would look like a hang. A refusal is delayed by
half a second, for a broker that connects again: its old connection may close after its new one has opened.

Addresses are not secrets and nothing is encrypted here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import zmq

from ollama_zmq.bus import admission
from ollama_zmq.bus.admission import NOBODY, Admission
from ollama_zmq.bus.inflow import InflowGuard
from ollama_zmq.bus.monitor import Accepted, Disconnected, Listening, Monitor, SocketEvent
from ollama_zmq.bus.sockets import BROKER_DOMAIN
from ollama_zmq.bus.wakeup import Wakeup

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
REFUSAL_DELAY_S = 0.5
RELEASE_DELAY_S = 2.0
PATIENCE_MS = 50  # between two looks at those who wait: a tenth of the delay is soon enough for a refusal

log = structlog.get_logger()


def exposure_warning(host: str, port: int) -> str:
    """Return the lines to print before listening on an address that other machines reach."""
    return (
        f"WARNING: listening on {host}:{port}, which other machines can reach. The tensor bus is neither encrypted\n"
        "WARNING: nor authenticated: whoever reaches this port can use this machine's memory and compute and\n"
        "WARNING: read what is sent. Use it in a network that you trust, behind a firewall, or listen on 127.0.0.1."
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """One ZAP request (RFC 27) as a ROUTER gets it.

    Attributes:
        frames: asker, empty, version, request id, domain, address, identity, mechanism, credentials.
    """

    since: float
    frames: list[bytes]

    @property
    def valid(self) -> bool:
        """Whether it is a request of the version that we know."""
        return len(self.frames) >= 8 and self.frames[2] == ZAP_VERSION

    @property
    def is_of_broker(self) -> bool:
        """Whether a broker's own socket asks, about a worker that it has chosen: in tests both share a context."""
        return self.valid and self.frames[4] == BROKER_DOMAIN

    @property
    def address(self) -> str:
        """Where the peer is."""
        return self.frames[5].decode(errors="replace") if self.valid else ""

    def answer(self, status: bytes, text: bytes, user: bytes) -> list[bytes]:
        """Return the reply: its last frames are user id and metadata."""
        request_id = self.frames[3] if len(self.frames) > 3 else b""
        return [self.frames[0], b"", ZAP_VERSION, request_id, status, text, user, b""]


class ZapAuthenticator:
    """Answers the ZAP requests of one context from a thread of its own, so that a busy worker still refuses at once.

    One per context; made before the socket that asks it. ``on_disconnect`` is called from this thread when the served
    peer has disconnected, before another is admitted.

    Raises:
        ZMQError: the context has a ZAP handler already.

    Attributes:
        guard: bounds what the peers of the watched socket make libzmq keep.
    """

    def __init__(
        self, context: zmq.Context[Any], on_disconnect: Callable[[], None], accounted: Callable[[], int] = lambda: 0
    ) -> None:
        self._on_disconnect = on_disconnect
        self._admission = Admission()
        self._lock = threading.Lock()
        self._zap: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._zap.setsockopt(zmq.LINGER, 0)
        try:
            self._zap.bind(ZAP_ENDPOINT)
        except zmq.ZMQError:
            self._zap.close(0)
            raise
        self.guard = InflowGuard(accounted)
        self._changed = Wakeup()
        self._stopping = False
        self._waiting: list[Asked] = []
        self._monitor: Monitor | None = None
        self._thread = threading.Thread(target=self._serve, name="zap", daemon=True)

    def watch(self, dealer: zmq.Socket[bytes]) -> None:
        """Begin to answer for *dealer*. Called once, by the thread that owns it, before it is bound."""
        self._monitor = Monitor(dealer)
        self._thread.start()

    def is_served(self, number: int, descriptor: int) -> bool:
        """Whether a message that peer *number* sent through *descriptor* is to be handled.

        The first message of all decides who is served; every other connection is cut then, and ``has_others`` tells
        when that is done.
        """
        with self._lock:
            served = self._admission.serve(number, descriptor)
            others = list(self._admission.leaving) if served else []
        for each in others:
            self.guard.cut(each, "another peer is served")
        return served

    def sent(self, frames: Sequence[Any]) -> None:
        """Count what was sent to the served peer."""
        nbytes = sum(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)
        self.guard.sent(self._admission.descriptor, nbytes)

    def has_others(self) -> bool:
        """Whether connections that were cut have not ended yet."""
        with self._lock:
            return bool(self._admission.leaving)

    def lease(self, held: bool) -> None:
        """Take note that the worker granted its lease, or that it is free again."""
        with self._lock:
            self._admission.leased = held
            self.guard.trust(self._admission.descriptor, held)
        self._changed.wake()

    def drop_silent(self) -> None:
        """Cut who has had no lease for longer than a handshake takes. Only when every message has been read."""
        self.guard.cut_strangers(admission.HANDSHAKE_TIMEOUT_S)

    def drop_served(self, reason: str) -> None:
        """Cut the peer that is served."""
        with self._lock:
            descriptor = self._admission.descriptor
        self.guard.cut(descriptor, reason)

    def close(self) -> None:
        """End the thread and close its sockets. The watched socket is closed by its owner, afterwards."""
        if self._thread.is_alive():
            self._stopping = True
            self._changed.wake()
            self._thread.join()
        self.guard.close()
        self._zap.close(0)
        self._changed.close()
        if self._monitor is not None:
            self._monitor.close()

    def _serve(self) -> None:
        assert self._monitor is not None
        poller = zmq.Poller()
        for readable in (self._zap, self._monitor.socket, self._changed.fileno()):
            poller.register(readable, zmq.POLLIN)
        while not self._stopping:
            ready = dict(poller.poll(self._patience_ms()))
            self._changed.clear()
            self._take_note(self._monitor)
            if self._zap in ready:
                self._waiting.append(Asked(time.monotonic(), self._zap.recv_multipart()))
            self._waiting = [asked for asked in self._waiting if not self._answered(asked)]

    def _patience_ms(self) -> int | None:
        return PATIENCE_MS if self._waiting else None

    def _take_note(self, monitor: Monitor) -> None:
        for event in monitor.events():
            self._watch_inflow(event)
            with self._lock:
                disconnected = self._admission.advance(event)
            if disconnected:
                self._on_disconnect()

    def _watch_inflow(self, event: SocketEvent) -> None:
        match event:
            case Listening():
                self.guard.clear()
            case Accepted(fd):
                self.guard.opened(fd)
            case Disconnected(fd=fd):
                self.guard.closed(fd)

    def _answered(self, asked: Asked) -> bool:
        """Answer one ZAP request, or leave it for later while the served peer may still be disconnecting."""
        if asked.is_of_broker:
            self._zap.send_multipart(asked.answer(b"200", b"", b""))
            return True
        now = time.monotonic()
        with self._lock:
            admitted = asked.valid and self._admission.admit()
            number = self._admission.number
            delay_s = RELEASE_DELAY_S if self._admission.served == NOBODY else REFUSAL_DELAY_S
        if admitted:
            self._zap.send_multipart(asked.answer(b"200", b"", str(number).encode()))
            return True
        if asked.valid and now - asked.since < delay_s:
            return False
        log.info("peer.refused", address=asked.address)
        self._zap.send_multipart(asked.answer(b"400", b"leased to another broker", b""))
        return True

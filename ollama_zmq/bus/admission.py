"""Admission control of a worker: which one connection it serves. Pure: events are given.

A bound DEALER deals its replies in turn to every peer that is connected, so two brokers would each get half. A worker
therefore serves one connection at a time. With the NULL mechanism libzmq asks before the peer has told its routing id,
so nothing but its address is known, and connections are what is counted. Who is silent keeps nobody out: any number
may be admitted, and the first that sends a message has the worker for itself.

    Event                                    Consequence
    ZAP request, nobody is served            200, under the next number: the message property "User-Id"
    ZAP request, a peer is served            400 after half a second, unless that peer disconnects meanwhile
    ZAP request, lease not yet given up      400 after two seconds, unless the worker gives it up meanwhile
    the first message of an admitted peer    it is served; every other connection is cut before it is answered
    a message of any other peer              dropped
    the served peer disconnected             nobody is served; the worker is told
    no lease for 3 s, all messages read      the connection is cut
    the socket listens (again)               nobody is connected

A busy worker notices late that its broker has disconnected. Until it has, nobody else is admitted: it would get the
answers that were meant for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_zmq.bus.monitor import Accepted, Disconnected, Listening, SocketEvent

HANDSHAKE_TIMEOUT_S = 3.0
NOBODY = -1


@dataclass(slots=True)
class Admission:
    """The connections of a worker, and the one that is served.

    Attributes:
        number: of the peer that was admitted last.
        served: number of the peer that is served, or ``NOBODY``.
        descriptor: of its connection, or ``NOBODY``.
        leased: whether the worker's lease is held, by the served peer or still by the one before it.
        leaving: descriptors of connections that were cut and have not ended yet.
    """

    number: int = 0
    served: int = NOBODY
    descriptor: int = NOBODY
    leased: bool = False
    leaving: set[int] = field(default_factory=set)
    _oldest: int = 1
    _open: set[int] = field(default_factory=set)

    def admit(self) -> bool:
        """Admit the next peer and return True, if nobody is served; nobody, when no connection is open any more."""
        if self.served != NOBODY or self.leased or not self._open:
            return False
        self.number += 1
        return True

    def serve(self, number: int, descriptor: int) -> bool:
        """Whether a message that peer *number* sent through *descriptor* is to be handled.

        The first one decides who is served; ``leaving`` are then all others, to be cut.
        """
        if self.served == NOBODY and number >= self._oldest and descriptor in self._open:
            self.served, self.descriptor = number, descriptor
            self.leaving = self._open - {descriptor}
        return self.served != NOBODY and number == self.served

    def advance(self, event: SocketEvent) -> bool:
        """Take note of what happened to the socket; True when the served peer has disconnected by it."""
        match event:
            case Listening():
                self._open.clear()
                self.leaving.clear()
                return self._disconnect()
            case Accepted(fd):
                self._open.add(fd)
            case Disconnected(fd=fd):
                self._open.discard(fd)
                self.leaving.discard(fd)
                if fd == self.descriptor:
                    return self._disconnect()
        return False

    def _disconnect(self) -> bool:
        """Serve nobody; what was sent by peers that were admitted so far is dropped."""
        was_served = self.served != NOBODY
        self.served = self.descriptor = NOBODY
        self._oldest = self.number + 1
        return was_served

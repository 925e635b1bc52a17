"""Admission control of a worker: which one connection is admitted. Pure: events and times are given.

A bound DEALER deals its replies in turn to every peer that is connected, so two brokers would each get half. A worker
therefore admits one peer at a time. With the NULL mechanism libzmq asks before the peer has told its routing id, so
nothing but its address is known, and the connection itself is what is counted:

    Event                                   Consequence
    ZAP request, nobody connected           200, under the next number: the message property "User-Id"
    ZAP request, a peer connected           400 after half a second, unless that peer disconnects meanwhile
    ZAP request, lease not yet given up     400 after two seconds, unless the worker gives it up meanwhile
    the connected peer said Hello           its file descriptor is known from that message
    that descriptor disconnected            nobody is connected; the worker is told
    no connection left at all               the same: a peer that never spoke has disconnected
    connected for 3 s without a lease       the worker binds anew, which closes every connection
    the socket listens (again)              nobody is connected

A busy worker notices late that its broker has disconnected. Until it has, nobody else is admitted: it would get the
answers that were meant for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ollama_zmq.bus.monitor import Accepted, Disconnected, Listening, SocketEvent

HANDSHAKE_TIMEOUT_S = 3.0


@dataclass(slots=True)
class Admission:
    """The one connection that is admitted.

    Attributes:
        number: of the connected peer, or of the last one that was.
        connected: whether an admitted peer is connected.
        leased: whether the worker's lease is held, by the connected peer or still by the one before it.
        since: when the peer was admitted or the lease last changed hands.
    """

    number: int = 0
    connected: bool = False
    leased: bool = False
    since: float = 0.0
    _descriptor: int = -1
    _open: set[int] = field(default_factory=set)

    def admit(self, now: float) -> bool:
        """Admit the next peer and return True, if nobody is connected; nobody, when no connection is open any more."""
        if self.connected or self.leased or not self._open:
            return False
        self.number += 1
        self.connected, self.since, self._descriptor = True, now, -1
        return True

    def advance(self, event: SocketEvent) -> bool:
        """Take note of what happened to the socket; True when the connected peer has disconnected by it."""
        match event:
            case Listening():
                self._open.clear()
                return self._disconnect()
            case Accepted(fd):
                self._open.add(fd)
            case Disconnected(fd=fd):
                self._open.discard(fd)
                if fd == self._descriptor or not self._open:
                    return self._disconnect()
        return False

    def identify(self, number: int, descriptor: int) -> None:
        """Remember the file descriptor that a message of peer *number* came through."""
        if self.connected and number == self.number:
            self._descriptor = descriptor

    def lease(self, held: bool, now: float) -> None:
        """Take note that the worker granted its lease, or that it is free again."""
        if held != self.leased:
            self.leased, self.since = held, now

    def handshake_expired(self, now: float) -> bool:
        """Whether a peer is connected without a lease for longer than a handshake takes."""
        return self.connected and not self.leased and now - self.since > HANDSHAKE_TIMEOUT_S

    def _disconnect(self) -> bool:
        was_connected, self.connected, self._descriptor = self.connected, False, -1
        return was_connected

"""The connections of the broker's ROUTER to its workers, from the first probe to the last disconnect.

    Phase        Event                                Consequence                          Next phase
    none         dial                                 probe the address                    PROBING
    PROBING      greeted                              libzmq connects, once                CONNECTING
    PROBING      refused, ended                       ConnectionFailed, not final          PROBING, after a pause
    PROBING      anything else                        ConnectionFailed, final              none
    CONNECTING   the ZMTP handshake is done           Attached                             CONNECTED
    CONNECTING   refused by ZAP, or not ZMTP 3        ConnectionFailed, final              FAILED
    CONNECTING   the attempt ended otherwise          ConnectionFailed, not final          PROBING, after a pause
    CONNECTED    disconnected                         ConnectionLost                       CONNECTED
    any          cut by the inflow guard              ConnectionFailed, final              FAILED
    any          hang up                              the routing id is forgotten          none

libzmq connects once and never again by itself (``RECONNECT_IVL`` is an hour): another service may have taken the port
meanwhile, so every connection begins with a probe. The coordinator decides whether and when there is a next one, and
hangs up what it has given up. A routing id is ``host:port#epoch.attempt`` and never used twice.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import zmq

from ollama_zmq.bus import sockets
from ollama_zmq.bus.addresses import is_of_this_machine
from ollama_zmq.bus.connections import failure_of_handshake, failure_of_probe
from ollama_zmq.bus.inflow import InflowGuard, frame_nbytes
from ollama_zmq.bus.monitor import Accepted, Connected, Disconnected, Listening, Monitor, Opened, SocketEvent
from ollama_zmq.bus.probe import Outcome, Probed, Probes
from ollama_zmq.cluster.events import Attached, ConnectionFailed, ConnectionLost, Event
from ollama_zmq.errors import Unreachable

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0


class DialPhase(Enum):
    """Where a connection stands."""

    PROBING = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    FAILED = auto()


@dataclass(slots=True)
class Dialled:
    """One address that is wanted. ``next_at``: when the next probe begins; infinity while one runs or none is due."""

    address: str
    endpoints: tuple[str, ...]
    epoch: int
    attempt: int = 0
    phase: DialPhase = DialPhase.PROBING
    next_at: float = float("inf")
    pause_s: float = FIRST_PAUSE_S
    descriptor: int = -1

    @property
    def endpoint(self) -> str:
        """Where this attempt goes: each address of a name in turn."""
        return self.endpoints[self.attempt % len(self.endpoints)]

    @property
    def has_untried(self) -> bool:
        """Whether the name has an address that was not tried yet."""
        return self.attempt + 1 < len(self.endpoints)

    @property
    def routing_id(self) -> bytes:
        """What the ROUTER calls this connection; another for each attempt."""
        return f"{self.address}#{self.epoch}.{self.attempt}".encode()


def routing_of(routing_id: bytes) -> tuple[str, int]:
    """The address and the epoch in a routing id of :class:`Dialled`."""
    address, _, attempt = routing_id.decode().rpartition("#")
    return address, int(attempt.partition(".")[0])


class Dialer:
    """Dials, watches and hangs up. ``router`` stays its owner's, whose thread makes every call.

    Args:
        own_ports: ports of this machine at which this process itself listens for something else: never dialled.
        accounted: bytes of memory that this process has taken on purpose, for the inflow guard.
    """

    def __init__(
        self,
        router: zmq.Socket[bytes],
        own_ports: frozenset[int] = frozenset(),
        accounted: Callable[[], int] = lambda: 0,
    ) -> None:
        self._router = router
        self._own_ports = own_ports
        self._monitor = Monitor(router)
        self._probes = Probes()
        self._guard = InflowGuard(accounted)
        self._dialled: dict[str, Dialled] = {}
        self._addresses: dict[str, str] = {}  # endpoint -> address

    @property
    def sources(self) -> tuple[zmq.Socket[bytes], int]:
        """What to poll for reading; :meth:`advance` is due when one is ready."""
        return self._monitor.socket, self._probes.fileno()

    def next_deadline(self) -> float:
        """Return when :meth:`advance` is due though nothing is ready; infinity for never."""
        return min([self._probes.next_deadline(), *(each.next_at for each in self._dialled.values())])

    def dial(self, address: str, endpoints: tuple[str, ...], epoch: int, now: float) -> None:
        """Begin to connect to *address*, which is at one of *endpoints*; :meth:`advance` returns what comes of it.

        Raises:
            Unreachable: this process listens there, or the same worker was dialled under another name.
        """
        for endpoint in endpoints:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            if int(port) in self._own_ports and is_of_this_machine(host.strip("[]")):
                raise Unreachable(
                    f"{address} is this server itself, not a worker: take it off the list", worker=address
                )
            other = self._addresses.get(endpoint, address)
            if other != address:
                raise Unreachable(f"{address} and {other} are the same worker: list it once", worker=address)
        self._addresses.update(dict.fromkeys(endpoints, address))
        self._dialled[address] = dialled = Dialled(address, endpoints, epoch)
        self._probes.start(address, dialled.endpoint, now)

    def hang_up(self, address: str) -> list[list[zmq.Frame]]:
        """Forget *address* with what is queued for it; return the messages of all workers that had arrived."""
        dialled = self._dialled.pop(address, None)
        if dialled is None:
            return []
        for endpoint in dialled.endpoints:
            del self._addresses[endpoint]
        self._probes.cancel(address)
        return sockets.disconnect(self._router, dialled.endpoint) if dialled.phase is not DialPhase.PROBING else []

    def send(self, address: str, epoch: int, frames: list[object]) -> None:
        """Send one message over the connection of *epoch*, without waiting.

        Raises:
            zmq.ZMQError: nothing was sent: there is no such connection, or its queue is full.
        """
        dialled = self._dialled.get(address)
        if dialled is None or dialled.epoch != epoch:
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        sockets.send(self._router, [dialled.routing_id, *frames])

    def consumed(self, address: str, parts: Sequence[zmq.Frame]) -> None:
        """Count a message that came from *address* and could be read: from the first on it is trusted."""
        if (dialled := self._dialled.get(address)) is not None:
            self._guard.trust(dialled.descriptor)
            self._guard.consumed(dialled.descriptor, sum(frame_nbytes(len(part)) for part in parts))

    def advance(self, now: float) -> tuple[list[Event], list[list[zmq.Frame]]]:
        """Go on with every connection. Does not wait.

        Returns:
            Events for the coordinator, oldest first, and messages that had arrived and must be handled.
        """
        events: list[Event] = []
        arrived: list[list[zmq.Frame]] = []
        for happened in self._monitor.events():
            events += self._on_socket_event(happened, now, arrived)
        for probed in self._probes.advance(now):
            events += self._on_probed(probed, now)
        for dialled in self._dialled.values():
            if now >= dialled.next_at:
                dialled.next_at = float("inf")
                self._probes.start(dialled.address, dialled.endpoint, now)
        return events, arrived

    def close(self) -> None:
        """End the monitor and every probe; the socket is closed by its owner."""
        self._router.disable_monitor()
        self._monitor.close()
        self._probes.close()
        self._guard.close()

    def _on_probed(self, probed: Probed, now: float) -> list[Event]:
        dialled = self._dialled[probed.key]
        if probed.outcome is not Outcome.GREETED:
            failed = failure_of_probe(dialled.address, dialled.epoch, probed)
            if dialled.has_untried:
                self._try_again(dialled, now, pause=False)
                return []
            if not failed.final:
                self._try_again(dialled, now)
            return [failed]
        dialled.phase = DialPhase.CONNECTING
        try:
            sockets.connect(self._router, dialled.endpoint, dialled.routing_id)
        except Unreachable as error:
            return [ConnectionFailed(dialled.address, dialled.epoch, str(error))]
        return []

    def _on_socket_event(self, happened: SocketEvent, now: float, arrived: list[list[zmq.Frame]]) -> list[Event]:
        cut = self._guard.closed(happened.fd) if isinstance(happened, Disconnected) else ""
        if isinstance(happened, Listening | Accepted):  # only a bound socket does
            return []
        dialled = self._dialled.get(self._addresses.get(happened.endpoint, ""))
        if dialled is None or dialled.phase in (DialPhase.PROBING, DialPhase.FAILED):
            return []
        address, epoch = dialled.address, dialled.epoch
        if cut:
            dialled.phase = DialPhase.FAILED
            return [ConnectionFailed(address, epoch, f"worker {address} sent what no worker sends: {cut}")]
        if dialled.phase is DialPhase.CONNECTED:
            if not isinstance(happened, Disconnected):
                return []
            return [ConnectionLost(address, epoch, f"worker {address} is gone: the connection broke")]
        if isinstance(happened, Opened):
            dialled.descriptor = happened.fd
            self._guard.opened(happened.fd)
            return []
        if isinstance(happened, Connected):
            dialled.phase = DialPhase.CONNECTED
            return [Attached(address, epoch)]
        failed = failure_of_handshake(address, epoch, happened)
        if failed is None:
            return []
        dialled.phase = DialPhase.FAILED
        if not failed.final:
            arrived += sockets.disconnect(self._router, dialled.endpoint)
            self._try_again(dialled, now)
        return [failed]

    def _try_again(self, dialled: Dialled, now: float, *, pause: bool = True) -> None:
        """Probe anew, for another connection; after a pause that doubles, unless it is another address."""
        dialled.phase, dialled.attempt = DialPhase.PROBING, dialled.attempt + 1
        if not pause:
            dialled.next_at = now
            return
        dialled.next_at = now + dialled.pause_s
        dialled.pause_s = min(2 * dialled.pause_s, MAX_PAUSE_S)

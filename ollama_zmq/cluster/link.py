"""One worker as the coordinator sees it: joining, measuring the link, liveness.

    State       Event                          Effects                    Next state
    ABSENT      join                           Connect                    CONNECTING
    CONNECTING  Attached                       none                       WAITING
    WAITING     no other greeting at its host  Send(Hello)                HANDSHAKE
    CONNECTING  ConnectionFailed, not final    none, for REFUSED_GRACE_S unless it was lost before  CONNECTING
    HANDSHAKE   Got(Welcome)                   Send(Ping) to measure      MEASURING
    HANDSHAKE   Got(Refused)                   Disconnect                 REFUSED
    MEASURING   Got(Pong), more to measure     Send(Ping)                 MEASURING
    MEASURING   Got(Pong), enough              none                       READY
    MEASURING   Got(Pong) of another ping      Disconnect                 LOST
    READY       Tick, PING_S since the last    Send(Ping)                 READY
    CONNECTING  ConnectionLost                 none (an attempt ended)    CONNECTING
    any other   ConnectionLost                 Disconnect                 LOST
    connected   Got(Bye), the worker stops     Disconnect                 LOST
    any         ConnectionFailed, final        Disconnect                 LOST
    joining     Tick past the deadline         Disconnect                 LOST

A worker measures its speed before it answers its first Hello. Workers on one host are greeted one after another:
measured at the same time they would take the memory bandwidth from each other, and the layers be cut by chance.

Every message carries the link's epoch, which fences off (a fencing token) what an older one still sends. A new
connection is a new epoch and a new routing id, because libzmq delivers what was queued for a dead worker to the process
that took its place.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from ollama_zmq.cluster.answers import MAX_TEXT
from ollama_zmq.cluster.cost_model import WorkerProfile
from ollama_zmq.cluster.events import Connect, Disconnect, Effect, Send
from ollama_zmq.devices.base import Array
from ollama_zmq.errors import RemoteProtocolError
from ollama_zmq.host import is_loopback
from ollama_zmq.printable import printable_line
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import AnyMessage, Bye, Define, Hello, Ping, Pong, Refused, Welcome

JOIN_LIMIT_S = 5.0
REFUSED_GRACE_S = 1.0
PING_S = 2.0
RTT_PROBES = 5
RTT_BYTES = 8 << 10
BANDWIDTH_BYTES = 1 << 20


class Status(Enum):
    """Where a worker stands. The values are shown to people."""

    ABSENT = "absent"
    CONNECTING = "connecting"
    WAITING = "waiting"
    HANDSHAKE = "handshake"
    MEASURING = "measuring"
    READY = "ready"
    LOST = "lost"
    REFUSED = "refused"


JOINING = frozenset({Status.CONNECTING, Status.WAITING, Status.HANDSHAKE, Status.MEASURING})
ENDED = frozenset({Status.LOST, Status.REFUSED})


def there_now(address: str) -> str:
    """What is said of a worker that is ready, beside a model that was loaded while it was not."""
    return f"worker {address} is there now: it is used from the next load of the model on"


@dataclass(slots=True)
class Link:
    """The state of one worker's connection.

    Attributes:
        remote: False for the broker's own device, whose link is not measured and cannot be lost.
        cores: of this machine; 0 when that is not known.
        foreign: named by a request, not by the operator of the server.
        was_lost: whether the connection before this one, or this one, was lost or refused.
        detail: why it is lost or refused, for the operator; ``why`` is for everybody.
        known: why an earlier connection ended, which holds until this one is made or has failed as well.
        progressed_at: when it last came nearer to being ready.
        pings: that were sent on this connection.
        steps: microbatches there, or on the way there or back, of all models.
        answered_at: when it last answered a step.
        defined: ids of the programs that were sent to it on this connection.
        used_at: when a model was last on it.
    """

    address: str
    broker: str
    remote: bool = True
    cores: int = 0
    status: Status = Status.ABSENT
    epoch: int = 0
    detail: str = ""
    known: str = ""
    welcome: Welcome | None = None
    foreign: bool = False
    was_lost: bool = False
    rtt_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0
    joined_at: float = 0.0
    progressed_at: float = 0.0
    pinged_at: float = 0.0
    pings: int = 0
    sequence_out: int = 0
    sequence_in: int = 0
    probes: list[float] = field(default_factory=list)
    steps: set[int] = field(default_factory=set)
    answered_at: float = 0.0
    defined: set[bytes] = field(default_factory=set)
    used_at: float = 0.0

    def join(self, epoch: int, now: float) -> list[Effect]:
        """Begin a new connection under a new *epoch*."""
        self.status, self.epoch, self.joined_at = Status.CONNECTING, epoch, now
        self.detail, self.known, self.welcome = "", self.detail or self.known, None
        self.sequence_out = self.sequence_in = self.pings = 0
        self.probes, self.steps, self.defined = [], set(), set()
        return [Connect(self.address, epoch)]

    @property
    def why(self) -> str:
        """Why it is not ready, for whoever asks: nobody learns from us what listens at an address he named himself."""
        if self.foreign:
            return f"worker {self.address} is not available; the server's log says why"
        if self.status is Status.READY:
            return there_now(self.address)
        silent = f"no answer from {self.address} yet: is its process stopped, or the machine off?"
        return self.detail or self.known or silent

    @property
    def profile(self) -> WorkerProfile:
        """What the planner knows of it, once it is ready."""
        assert self.welcome is not None
        return WorkerProfile(
            self.address,
            self.welcome.memory_budget,
            self.welcome.decode_bytes_per_s,
            self.welcome.prefill_macs_per_s,
            self.rtt_s,
            self.bandwidth_bytes_per_s,
            min(self.welcome.threads / self.cores, 1.0) if self.cores and not self.host else 0.0,
            {speed.type: speed for speed in self.welcome.matrices},
            self.welcome.values_per_s,
            self.welcome.call_s,
            tuple(device.name for device in self.welcome.devices),
        )

    @property
    def memory_nbytes(self) -> int:
        """The most bytes that a program on it can take; 0 before it is ready."""
        return max(self.welcome.memory_total, self.welcome.memory_budget) if self.welcome is not None else 0

    @property
    def host(self) -> str:
        """The machine it is on; this one is ""."""
        name = self.address.rpartition(":")[0].strip("[]") if self.remote else ""
        return "" if is_loopback(name) else name

    def attached(self, now: float) -> list[Effect]:
        """The worker let us in; it waits until no other on its host is in the handshake."""
        if self.status is Status.CONNECTING:
            self.status, self.progressed_at = Status.WAITING, now
        return []

    def start_handshake(self, now: float) -> list[Effect]:
        """Say Hello."""
        self.status, self.joined_at, self.progressed_at = Status.HANDSHAKE, now, now
        return [self.send(Hello(VERSION, PROTOCOL, self.broker))]

    def connection_failed(self, reason: str, *, final: bool, now: float) -> list[Effect]:
        """Take note that the connection is gone; while joining, a refused connection may still be made."""
        if self.status in (Status.ABSENT, Status.LOST, Status.REFUSED):
            return []
        grace_s = 0.0 if self.was_lost else REFUSED_GRACE_S
        if not final and self.status is Status.CONNECTING and now - self.joined_at < grace_s:
            self.detail = printable_line(reason, MAX_TEXT)
            return []
        return self.drop(Status.LOST, reason)

    def connection_lost(self, reason: str) -> list[Effect]:
        """The connection ended; while connecting that is one attempt of several, and libzmq makes the next."""
        if self.status in (Status.ABSENT, Status.CONNECTING, Status.LOST, Status.REFUSED):
            return []
        return self.drop(Status.LOST, reason)

    def drop(self, status: Status, detail: str) -> list[Effect]:
        """End the connection and remember why."""
        self.status, self.detail = status, printable_line(detail, MAX_TEXT)
        self.was_lost = True
        return [Disconnect(self.address)]

    def count(self, sequence: int) -> None:
        """Take note of a message of this epoch.

        Raises:
            RemoteProtocolError: one was lost on the way (a gap in the sequence).
        """
        if sequence != self.sequence_in:
            raise RemoteProtocolError(f"message {sequence} arrived, {self.sequence_in} was next")
        self.sequence_in += 1

    def receive(self, message: AnyMessage, tensors: Mapping[str, Array], now: float) -> list[Effect]:
        """Advance by a message about the link itself; others are none of its business.

        Raises:
            RemoteProtocolError: a ``Pong`` is not the answer to the ``Ping`` that measures.
        """
        match message:
            case Welcome() if self.status is Status.HANDSHAKE:
                return self._welcomed(message, now)
            case Refused():
                return self.drop(Status.REFUSED, f"{self.address}: {message.reason}")
            case Bye() if self.status not in ENDED:
                return self.drop(Status.LOST, f"worker {self.address} was stopped")
            case Pong(nonce) if self.status is Status.MEASURING:
                self._check_pong(nonce, tensors["payload"].nbytes)
                return self._measured(now)
        return []

    def tick(self, now: float) -> list[Effect]:
        """Give up joining when it takes too long; otherwise show the worker that we live."""
        if self.status in JOINING - {Status.WAITING} and now - self.joined_at > JOIN_LIMIT_S:
            return self.drop(Status.LOST, self._why_no_answer())
        if self.status is Status.READY and now - self.pinged_at > PING_S:
            return [self._ping(0, now)]
        return []

    def send(self, message: AnyMessage, tensors: dict[str, np.ndarray] | None = None) -> Send:
        """Address *message* to this worker, in this epoch, next in sequence."""
        return Send(self.address, self.envelope(message, tensors))

    def envelope(self, message: AnyMessage, tensors: dict[str, np.ndarray] | None = None) -> Envelope:
        """Return *message* numbered as the next one of this epoch."""
        sequence = self.sequence_out
        self.sequence_out += 1
        if isinstance(message, Define):
            self.defined.add(message.program)
        return Envelope(message, tensors or {}, epoch=self.epoch, seq=sequence)

    def _welcomed(self, welcome: Welcome, now: float) -> list[Effect]:
        self.welcome = welcome
        if not self.remote:
            return self._ready(now)
        self.status, self.progressed_at = Status.MEASURING, now
        return [self._ping(self._probe_nbytes, now)]

    @property
    def _probe_nbytes(self) -> int:
        """Of the ping that measures, after those that are answered: some small ones, then a large one."""
        return RTT_BYTES if len(self.probes) < RTT_PROBES else BANDWIDTH_BYTES

    def _check_pong(self, nonce: int, nbytes: int) -> None:
        if (nonce, nbytes) != (self.pings - 1, self._probe_nbytes):
            raise RemoteProtocolError(
                f"pong {nonce} with {nbytes} bytes answers ping {self.pings - 1} with {self._probe_nbytes} bytes"
            )

    def _measured(self, now: float) -> list[Effect]:
        self.probes.append(now - self.pinged_at)
        if len(self.probes) <= RTT_PROBES:
            return [self._ping(self._probe_nbytes, now)]
        self.rtt_s = statistics.median(self.probes[:RTT_PROBES])
        self.bandwidth_bytes_per_s = 2 * BANDWIDTH_BYTES / max(self.probes[-1] - self.rtt_s, 1e-6)
        return self._ready(now)

    def _ready(self, now: float) -> list[Effect]:
        self.status, self.was_lost, self.detail, self.known = Status.READY, False, "", ""
        self.pinged_at = self.progressed_at = now
        return []

    def _ping(self, nbytes: int, now: float) -> Send:
        self.pinged_at, self.pings = now, self.pings + 1
        return self.send(Ping(self.pings - 1), {"payload": np.zeros(nbytes, np.uint8)})

    def _why_no_answer(self) -> str:
        if self.status is not Status.CONNECTING:
            return (
                f"worker {self.address} took the connection but did not answer within {JOIN_LIMIT_S:g} s: "
                "is its process stopped, or its machine very busy?"
            )
        return (
            self.detail
            or f"no answer from {self.address} within {JOIN_LIMIT_S:g} s: is the machine on, and the port open?"
        )

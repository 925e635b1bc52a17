"""What a load under way holds: how far its workers are, until when they must get further, who is left out of it.

It begins with the order and ends when the model is loaded or given up; a worker that is lost under it makes it begin
anew, an attempt each time. What has begun for one attempt is forgotten with it; who was lost is not.

**Deadlines.** A worker's is ``LOAD_STALL_S`` since it last got further (``Defined``, ``Stored``), and before ``Ready``
the time to read its part from a slow disk. The load as a whole, the local device's part included, has ``timeout_s`` and
the same time for the disk since any of them did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ollama_zmq.cluster.links import Links
from ollama_zmq.cluster.stages import LoadOrder, Missing, Stage
from ollama_zmq.cluster.uploads import Chunk, Upload
from ollama_zmq.errors import CapacityError, RemoteProtocolError
from ollama_zmq.wire.messages import Defined, Stored

LOAD_STALL_S = 20.0
SLOW_DISK_BYTES_PER_S = 20e6


@dataclass(slots=True)
class Attempt:
    """What has begun to load on the workers of *stages*.

    Attributes:
        unready: programs that are not ready; defined: those that were accepted.
        uploads: worker address -> what it must be sent.
        deadlines: worker address -> when it must have got further. ends_at: when the load must have.
    """

    stages: tuple[Stage, ...] = ()
    unready: set[bytes] = field(default_factory=set)
    defined: set[bytes] = field(default_factory=set)
    uploads: dict[str, Upload] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)
    ends_at: float = math.inf

    def loads_on(self, address: str) -> bool:
        """Whether a worker has still to load."""
        return any(stage.program in self.unready for stage in self.stages if stage.address == address)

    def from_disk_s(self, address: str) -> float:
        """Seconds that a worker on a slow disk reads what it is not sent; 0 for one that is done."""
        if not self.loads_on(address):
            return 0.0
        sources = (source for stage in self.stages if stage.address == address for source in stage.define.sources)
        nbytes = sum(source.nbytes for source in sources) - self.uploads[address].total
        return max(nbytes, 0) / SLOW_DISK_BYTES_PER_S


class Loading:
    """One load.

    Args:
        timeout_s: how long it may make no progress at all.

    Attributes:
        restarts: how often it has begun anew because a worker was lost.
        left_out: worker address -> why it goes on without that.
    """

    def __init__(self, order: LoadOrder, links: Links, timeout_s: float) -> None:
        self._order = order
        self._links = links
        self._timeout_s = timeout_s
        self._attempt = Attempt()
        self._lost_before: set[str] = set()
        self.restarts = 0
        self.left_out: dict[str, str] = {}

    @property
    def candidates(self) -> tuple[str, ...]:
        """The workers that may have a part in it."""
        return tuple(address for address in self._order.addresses if address not in self.left_out)

    @property
    def uploads(self) -> dict[str, Upload]:
        """Worker address -> what it must be sent."""
        return self._attempt.uploads

    @property
    def is_ready(self) -> bool:
        """Whether every program is."""
        return not self._attempt.unready

    def begin(self, stages: tuple[Stage, ...], now: float) -> None:
        """Take note that the programs of *stages* are sent."""
        programs, addresses = {stage.program for stage in stages}, {stage.address for stage in stages}
        self._attempt = Attempt(stages, programs, uploads={address: Upload() for address in addresses})
        for address in addresses:
            self._got_further(address, now)

    def lost(self, address: str) -> None:
        """Take note that a worker was lost: nothing of what has begun counts. It may join again once."""
        self._attempt = Attempt()
        self.restarts += 1
        if address in self._lost_before:
            self.leave_out(address, self._links[address].why)
        self._lost_before.add(address)

    def defined(self, address: str, message: Defined, now: float) -> None:
        """Queue what a worker misses.

        Raises:
            RemoteProtocolError: it misses what its program does not have, or what it has been asked for already.
        """
        attempt = self._attempt
        stage = next(stage for stage in attempt.stages if stage.program == message.program)
        sources = {source.name: source for source in stage.define.sources}
        if message.program in attempt.defined:
            raise RemoteProtocolError(f"it accepts program {message.program.hex()} twice")
        attempt.defined.add(message.program)
        for name in message.missing:
            if (source := sources.pop(name, None)) is None:
                raise RemoteProtocolError(f"it misses weight {name[:128]!r} twice, or its program has none such")
            attempt.uploads[address].add(message.program, source)
        self._got_further(address, now)

    def stored(self, address: str, message: Stored, now: float) -> None:
        """Take note of what has arrived.

        Raises:
            RemoteProtocolError: more than was sent.
        """
        self._attempt.uploads[address].acknowledged(message.received)
        self._got_further(address, now)

    def next_chunks(self, address: str, *, busy: bool) -> list[Chunk]:
        """Take what may be sent to a worker now; few while steps of any model are in flight."""
        return [] if self.is_ready else self._attempt.uploads[address].next_chunks(busy=busy)

    def is_unready(self, program: bytes) -> bool:
        """Whether *program* is about to be ready."""
        return program in self._attempt.unready

    def ready(self, address: str, program: bytes, now: float) -> None:
        """Take note that *program* can run."""
        self._attempt.unready.discard(program)
        self._got_further(address, now)

    def leave_out(self, address: str, why: str) -> None:
        """Go on without the worker at *address*, if the order allows it, though it may join again."""
        if self._order.missing is Missing.USE_REST and address in self._order.addresses:
            self.left_out.setdefault(address, why)

    def deadlines(self) -> list[float]:
        """When a worker, or the load, must have got further."""
        return [*self._attempt.deadlines.values(), self._attempt.ends_at]

    def timed_out(self, now: float) -> CapacityError | None:
        """What to say of a load that has made no progress for too long; None while there is time."""
        if now <= self._attempt.ends_at:
            return None
        return CapacityError(
            f"loading {self._order.name} made no progress for {self._timeout_s:g} s; set OLLAMA_LOAD_TIMEOUT of the"
            " server higher, or to 0 for no limit"
        )

    def late(self, now: float) -> tuple[str, str] | None:
        """The worker that let its deadline pass, and what to say of it."""
        for address, deadline in self._attempt.deadlines.items():
            if now > deadline:
                return address, f"worker {address} got no further with loading {self._order.name} in time"
        return None

    def check(self, stages: tuple[Stage, ...]) -> None:
        """Assert what must hold of the load of *stages* between any two events; tests call it.

        Raises:
            AssertionError: it does not.
        """
        attempt, addresses = self._attempt, {stage.address for stage in stages}
        assert attempt.stages == stages
        assert attempt.defined | attempt.unready <= {stage.program for stage in stages}
        assert attempt.uploads.keys() == addresses
        assert attempt.deadlines.keys() <= {stage.address for stage in stages if stage.program in attempt.unready}
        assert attempt.ends_at == math.inf or stages
        for upload in attempt.uploads.values():
            assert 0 <= upload.done <= upload.sent <= upload.total

    def _got_further(self, address: str, now: float) -> None:
        """Give a worker, and the load, time until the next sign of progress."""
        attempt = self._attempt
        attempt.ends_at = now + self._timeout_s + max(map(attempt.from_disk_s, attempt.uploads))
        if not attempt.loads_on(address):
            attempt.deadlines.pop(address, None)
        elif self._links[address].remote:
            attempt.deadlines[address] = now + LOAD_STALL_S + attempt.from_disk_s(address)

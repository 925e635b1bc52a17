"""Sending weights that a worker does not have: chunks in order, under credit-based flow control.

The credit is how many bytes may be unacknowledged. It keeps a step from waiting long behind weights: 4 MB while
nothing else is going on, 256 KB while steps are in flight, which for whole chunks of 1 MB means one at a time: 84 ms
at 100 Mbit/s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ollama_zmq.cluster.answers import check_range
from ollama_zmq.wire.messages import CHUNK_BYTES, WeightSource

IDLE_CREDIT_BYTES = 4 << 20
BUSY_CREDIT_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of bytes of one weight."""

    program: bytes
    source: WeightSource
    offset: int
    nbytes: int


@dataclass(slots=True)
class Upload:
    """What one worker still needs.

    Attributes:
        total, done: bytes asked for, bytes acknowledged.
        sent: bytes sent; ``sent - done`` is in flight.
    """

    total: int = 0
    done: int = 0
    sent: int = 0
    queue: deque[Chunk] = field(default_factory=deque)

    def add(self, program: bytes, source: WeightSource) -> None:
        """Queue every chunk of a weight."""
        self.total += source.nbytes
        for offset in range(0, source.nbytes, CHUNK_BYTES):
            self.queue.append(Chunk(program, source, offset, min(CHUNK_BYTES, source.nbytes - offset)))

    def next_chunks(self, *, busy: bool) -> list[Chunk]:
        """Take the chunks that may be sent now; one is always allowed when nothing is in flight."""
        credit = BUSY_CREDIT_BYTES if busy else IDLE_CREDIT_BYTES
        chunks = []
        while self.queue and (self.sent == self.done or self.sent - self.done + self.queue[0].nbytes <= credit):
            chunk = self.queue.popleft()
            self.sent += chunk.nbytes
            chunks.append(chunk)
        return chunks

    def acknowledged(self, nbytes: int) -> None:
        """Take *nbytes* as arrived.

        Raises:
            RemoteProtocolError: so many are not in flight, or there are none of them, which is no progress.
        """
        check_range("received", nbytes, 1, self.sent - self.done)
        self.done += nbytes

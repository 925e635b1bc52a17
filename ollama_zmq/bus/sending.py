"""Memory for outputs that libzmq has not sent yet.

A device's output is valid until its next run, and libzmq reads the memory of a large frame whenever it gets to it. So a
large output is copied into a buffer that is used again only when its tracker says that libzmq is done with it. Frames
below pyzmq's threshold are copied by pyzmq itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import zmq

from ollama_zmq.devices.base import Array

KEPT_BUFFERS = 8


@dataclass(slots=True)
class Buffer:
    """One piece of memory and who still reads it."""

    memory: Array
    tracker: zmq.MessageTracker | None = None

    @property
    def free(self) -> bool:
        """Whether nobody reads it any more."""
        return self.tracker is None or self.tracker.done


class BufferRing:
    """Buffers that go round: as many as are on their way at once, of which ``KEPT_BUFFERS`` are kept."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []

    def copy(self, array: Array) -> tuple[Array, Buffer]:
        """Return a copy of *array* and its buffer, whose ``tracker`` the caller sets when it has sent the copy."""
        buffer = self._take(array.nbytes)
        copied = buffer.memory[: array.nbytes].view(array.dtype)[: prod(array.shape)].reshape(array.shape)
        np.copyto(copied, array)
        return copied, buffer

    def _take(self, nbytes: int) -> Buffer:
        for buffer in self._buffers:
            if buffer.free and buffer.memory.nbytes >= nbytes:
                buffer.tracker = None
                return buffer
        self._buffers = [buffer for buffer in self._buffers if not buffer.free][-(KEPT_BUFFERS - 1) :]
        made = Buffer(np.empty(nbytes, np.uint8))
        self._buffers.append(made)
        return made

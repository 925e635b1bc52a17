"""Chunks of weights, read from a mapped model file in the order in which they are sent."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ollama_zmq.cluster.events import SendChunk
from ollama_zmq.devices.base import Array
from ollama_zmq.wire.messages import Put


class Chunks:
    """Reads chunks; the digest of a whole weight goes with its last one."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, bytes, str], Any] = {}  # of what was read so far

    def put(self, wanted: SendChunk, weight: memoryview) -> tuple[Put, Array]:
        """The message for a chunk of *weight*, and its bytes."""
        chunk = np.frombuffer(weight, np.uint8, wanted.nbytes, wanted.offset)
        key = wanted.address, wanted.program, wanted.source.name
        digest: Any = hashlib.sha256() if wanted.offset == 0 else self._digests.pop(key)
        digest.update(chunk)
        is_last = wanted.offset + wanted.nbytes == wanted.source.nbytes
        if not is_last:
            self._digests[key] = digest
        return Put(wanted.program, wanted.source.name, wanted.offset, digest.digest() if is_last else b""), chunk

    def forget(self, address: str, program: bytes | None = None) -> None:
        """Drop what was begun for one *program* at *address*, or for all: each is sent from its start again."""
        over = [key for key in self._digests if key[0] == address and program in (None, key[1])]
        for key in over:
            del self._digests[key]

"""The weights of a worker: whose they are, where they come from, when they are forgotten.

A weight is known by which bytes of which file it is, as which type and shape; so a tied embedding that two programs use
is loaded once. Its bytes come from a blob in this machine's own store, or from the broker in chunks. Every byte that is
held, packed or on its way, is taken from the device's budget.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from ollama_zmq.devices.base import Array, Device, DeviceWeight
from ollama_zmq.errors import ModelFileError, RemoteProtocolError
from ollama_zmq.formats.quants import tensor_nbytes, type_of_id
from ollama_zmq.ops.program import WeightSpec
from ollama_zmq.wire.messages import CHUNK_BYTES, Put, WeightSource

FindBlob = Callable[[str], Path | None]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """Which bytes a weight is, and how they are read. Equal identities are the same weight.

    Attributes:
        blob: the file they are of; "" for one that has no name.
        sender: program and name of a weight in a file without a name, which nobody shares.
    """

    blob: str
    offset: int
    nbytes: int
    type: int
    shape: tuple[int, ...]
    sender: tuple[bytes, str] | None = None


def identity_of(program: bytes, spec: WeightSpec, source: WeightSource) -> Identity:
    """Return the identity of a weight; without a blob nobody can share it, so the program is part of it.

    Raises:
        RemoteProtocolError: the source is of another weight, another size, or not a place in a file.
        ModelFileError, ShapeError: there is no such tensor type, or it has no such shape.
    """
    if source.name != spec.name:
        raise RemoteProtocolError(f"source of weight {source.name!r} where {spec.name!r} is declared")
    nbytes = tensor_nbytes(type_of_id(spec.type), spec.shape)
    if source.nbytes != nbytes:
        raise RemoteProtocolError(f"weight {spec.name!r}: {source.nbytes} bytes, its type and shape need {nbytes}")
    if source.offset < 0:
        raise RemoteProtocolError(f"weight {spec.name!r}: offset {source.offset} is out of range")
    sender = None if source.blob else (program, spec.name)
    return Identity(source.blob, source.offset, nbytes, spec.type, spec.shape, sender)


@dataclass(slots=True)
class Arriving:
    """A weight of which chunks have come."""

    data: bytearray
    received: int = 0
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)


class Weights:
    """What a worker holds. ``find_blob`` finds a blob in this machine's own store, or returns None."""

    def __init__(self, device: Device, find_blob: FindBlob) -> None:
        self._device = device
        self._find_blob = find_blob
        self._held: dict[Identity, DeviceWeight] = {}
        self._users: dict[Identity, set[bytes]] = {}
        self._arriving: dict[Identity, Arriving] = {}
        self._parts: dict[Identity, Generator[None, None, DeviceWeight]] = {}  # begun, to be gone on with
        self._files: dict[str, mmap.mmap] = {}

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._held

    def __getitem__(self, identity: Identity) -> DeviceWeight:
        return self._held[identity]

    def in_store(self, identity: Identity) -> bool:
        """Whether this machine's own store has the bytes."""
        file = self._file(identity.blob) if identity.blob else None
        if file is None:
            return False
        if identity.offset + identity.nbytes > len(file):
            log.warning("blob.truncated", blob=identity.blob, nbytes=len(file))
            return False
        return True

    def use(self, program: bytes, identity: Identity) -> None:
        """Keep the weight for *program* until it is released."""
        self._users.setdefault(identity, set()).add(program)

    def is_counted(self, identity: Identity) -> bool:
        """Whether its memory has been taken from the budget, though a part of it may be missing."""
        return identity in self._held or identity in self._parts

    def load_part_from_store(self, identity: Identity, spec: WeightSpec) -> bool:
        """Load the next part of a weight whose bytes are in the store; whether that was the last.

        Raises:
            ModelFileError: they are not, any more.
            OutOfDeviceMemory: the budget does not allow it.
        """
        if identity in self._held:
            return True
        parts = self._parts.pop(identity, None) or self._device.weight_in_parts(spec, self._stored(identity, spec))
        try:
            next(parts)
        except StopIteration as end:
            self._held[identity] = end.value
            return True
        self._parts[identity] = parts
        return False

    def _stored(self, identity: Identity, spec: WeightSpec) -> memoryview:
        file = self._file(identity.blob)
        if file is None or identity.offset + identity.nbytes > len(file):
            raise ModelFileError(f"{identity.blob}: {spec.name!r} is not in the store any more", blob=identity.blob)
        return memoryview(file)[identity.offset : identity.offset + identity.nbytes]

    def close_files(self) -> None:
        """Let go of the store's files; they are opened again when needed."""
        self._files.clear()

    def keep(self, identity: Identity, spec: WeightSpec, put: Put, chunk: Array) -> None:
        """Add a chunk; the weight is loaded with its last one. Chunks of a weight that is here already are ignored.

        Raises:
            RemoteProtocolError: the chunk is too large, not the next one, or not 1-D uint8; nothing is lost by it.
            ModelFileError: the bytes are not those of the digest; they are dropped.
            OutOfDeviceMemory: the budget does not allow it.
        """
        if identity in self._held:
            return
        if chunk.dtype != "uint8" or chunk.ndim != 1 or not 0 < chunk.size <= CHUNK_BYTES:
            raise RemoteProtocolError(
                f"weight {put.weight!r}: chunk {chunk.dtype} {list(chunk.shape)}, expected uint8 [1..{CHUNK_BYTES}]"
            )
        if put.offset == 0:
            self._begin(identity, put.weight)
        arriving = self._arriving.get(identity)
        received = arriving.received if arriving else 0
        if arriving is None or put.offset != received or received + chunk.size > identity.nbytes:
            raise RemoteProtocolError(
                f"weight {put.weight!r}: chunk of {chunk.size} bytes at {put.offset}, {received} of "
                f"{identity.nbytes} have arrived"
            )
        arriving.data[received : received + chunk.size] = chunk.data
        arriving.sha256.update(chunk.data)
        arriving.received += chunk.size
        if arriving.received == identity.nbytes:
            self._complete(identity, spec, arriving, put.digest)

    def release(self, program: bytes) -> None:
        """Forget what only *program* uses."""
        for identity in [identity for identity, users in self._users.items() if program in users]:
            self._users[identity].discard(program)
            if not self._users[identity]:
                del self._users[identity]
                self._drop_arriving(identity)
                if (parts := self._parts.pop(identity, None)) is not None:
                    parts.close()
                if (weight := self._held.pop(identity, None)) is not None:
                    weight.close()

    def _begin(self, identity: Identity, name: str) -> None:
        self._drop_arriving(identity)
        self._device.budget.take(identity.nbytes, f"weight {name!r} on its way")
        self._arriving[identity] = Arriving(bytearray(identity.nbytes))

    def _complete(self, identity: Identity, spec: WeightSpec, arriving: Arriving, digest: bytes) -> None:
        try:
            found = arriving.sha256.digest()
            if found != digest:
                raise ModelFileError(
                    f"weight {spec.name!r}: sha256 {found.hex()[:16]}..., the sender's is {digest.hex()[:16]}..."
                )
            self._held[identity] = self._device.load_weight(spec, memoryview(arriving.data))
        finally:
            self._drop_arriving(identity)

    def _drop_arriving(self, identity: Identity) -> None:
        if self._arriving.pop(identity, None) is not None:
            self._device.budget.give(identity.nbytes)

    def _file(self, blob: str) -> mmap.mmap | None:
        if blob not in self._files:
            path = self._find_blob(blob)
            if path is None:
                return None
            try:
                with path.open("rb") as file:
                    self._files[blob] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                log.warning("blob.unreadable", blob=blob, error=str(error))
                return None
        return self._files[blob]

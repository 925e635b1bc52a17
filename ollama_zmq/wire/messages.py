"""Every message that crosses the bus. Adding a message is adding a class here.

A message is a small, immutable record; tensors never live inside it. A message that travels with tensors names them in
``tensors`` and they ride behind it as raw frames, in that order (:mod:`ollama_zmq.wire.frames`).

The class name in snake_case is the tag on the wire. Fields may be added with a default; a field's meaning never
changes. When it must, bump ``PROTOCOL``. ``Hello`` and ``Refused`` are read in every version, so that two versions can
tell each other apart.

    coordinator -> worker     Hello  Ping  Define  Put  Run  Release  Bye
    worker -> coordinator     Welcome  Refused  Pong  Defined  Stored  Ready  Ran  Failed  Bye
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ollama_zmq.wire.names import (
    BlobName,
    BrokerId,
    DeviceKind,
    Digest,
    ErrorKind,
    ProgramId,
    Short,
    Text,
    WeightName,
    WorkerId,
)

MAX_TENSOR_BYTES = (32 << 20) + (64 << 10)  # float32 [512, 16384] and some
CHUNK_BYTES = 1 << 20  # of a weight in one Put; larger frames outlast a heartbeat on slow links


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class Message(msgspec.Struct, frozen=True, tag=_snake, tag_field="t"):
    """Base of all messages.

    Attributes:
        tensors: names of the tensors that travel with it.
        max_header_bytes, max_tensor_bytes: of its header, and of each of its tensors.
    """

    tensors: ClassVar[tuple[str, ...]] = ()
    max_header_bytes: ClassVar[int] = 256 << 10
    max_tensor_bytes: ClassVar[int] = MAX_TENSOR_BYTES


class Hello(Message, frozen=True):
    """Ask for the lease of a worker. Answered by ``Welcome`` or ``Refused``; a repeat is answered again.

    Attributes:
        package: version of ollama-zmq at the broker.
        protocol: its protocol version.
        broker: random id of the broker process, hexadecimal.
    """

    package: Short
    protocol: int
    broker: BrokerId


class DeviceInfo(msgspec.Struct, frozen=True):
    """One device of a worker.

    Attributes:
        kind: such as "cpu".
        name: model and instruction set or driver, for a person.
    """

    kind: DeviceKind
    name: Text


class MatrixSpeed(msgspec.Struct, frozen=True, array_like=True):
    """How fast a worker is with matrices of one tensor type: bytes of the file a second, multiply-adds a second."""

    type: int
    decode_bytes_per_s: float
    prefill_macs_per_s: float


class Welcome(Message, frozen=True):
    """The lease is granted. Answers ``Hello``.

    Attributes:
        memory_total: bytes of the machine; memory_budget: bytes this worker may use (``-m``).
        decode_bytes_per_s, prefill_macs_per_s: what the worker measured of itself, with Q8_0.
        matrices: the same of each tensor type. values_per_s, call_s: of ops without a matrix; 0 for not measured.
        id: hexadecimal digest of random bytes that its machine keeps on disk, its host's name and its port: one worker
            is one worker whatever its address; "" when there is none.
    """

    package: Short
    protocol: int
    host: Text
    devices: tuple[DeviceInfo, ...]
    memory_total: int
    memory_budget: int
    threads: int
    decode_bytes_per_s: float
    prefill_macs_per_s: float
    matrices: tuple[MatrixSpeed, ...] = ()
    values_per_s: float = 0.0
    call_s: float = 0.0
    id: WorkerId = ""


class Refused(Message, frozen=True):
    """The lease is not granted, and why. Answers ``Hello``.

    Attributes:
        reason: one line for a person, naming both versions where versions are the reason.
        package, protocol: the worker's.
    """

    reason: Text
    package: Short
    protocol: int


class Ping(Message, frozen=True):
    """Measure the link, or show that the broker lives. Answered by ``Pong`` with the same payload."""

    tensors = ("payload",)  # uint8 [n], n may be 0
    max_tensor_bytes = CHUNK_BYTES

    nonce: int


class Pong(Message, frozen=True):
    """Answers ``Ping``."""

    tensors = ("payload",)
    max_tensor_bytes = CHUNK_BYTES

    nonce: int


class WeightSource(msgspec.Struct, frozen=True):
    """Which bytes a weight is made of.

    Attributes:
        name: of the weight in its program.
        blob: "sha256-<64 hex>" of the file it is in, "file-<64 hex>" when it is in no store, or "".
        offset, nbytes: where in that file.
    """

    name: WeightName
    blob: BlobName
    offset: int
    nbytes: int


class Define(Message, frozen=True, omit_defaults=True):
    """Make a program ready. Answered by ``Defined`` at once, and by ``Ready`` when all weights are there.

    A repeat of a program that is ready is answered the same way again; ``Failed`` says what is wrong otherwise.

    Attributes:
        program: id of the program whose bytes are ``code``.
        sources: one per weight of the program, in the program's order.
        kv_pages: pages in the KV cache of every layer; 0 for a program without caches.
        max_tokens: the most tokens one ``Run`` will carry; max_rows: the most rows it will ask for.
        threads: the most threads to run it with; 0 for as many as the device has.
    """

    max_header_bytes = 2 << 20  # the program of 126 layers with its weight sources takes under 0.5 MB

    program: ProgramId
    code: bytes
    sources: tuple[WeightSource, ...]
    kv_pages: int
    max_tokens: int
    max_rows: int
    threads: int = 0


class Defined(Message, frozen=True):
    """The program is accepted, and these weights must be sent. Answers ``Define``.

    Attributes:
        missing: names of weights that the worker has neither in memory nor in its own store.
    """

    max_header_bytes = Define.max_header_bytes  # it may name every weight of that

    program: ProgramId
    missing: tuple[WeightName, ...]


class Put(Message, frozen=True):
    """One chunk of a weight, at most ``CHUNK_BYTES``, in order. Answered by ``Stored``.

    Attributes:
        offset: where the chunk begins in the weight.
        digest: sha256 of the whole weight, with its last chunk; empty before.
    """

    tensors = ("chunk",)  # uint8 [n]
    max_tensor_bytes = CHUNK_BYTES

    program: ProgramId
    weight: WeightName
    offset: int
    digest: Digest = b""


class Stored(Message, frozen=True):
    """So many bytes of a weight have arrived: they are the sender's credit again. Answers ``Put``."""

    program: ProgramId
    received: int


class Ready(Message, frozen=True):
    """Every weight is in place and the program can run. Follows ``Defined``.

    Attributes:
        nbytes: memory of this program; weights that it shares with others count for each.
    """

    program: ProgramId
    nbytes: int


class Run(Message, frozen=True):
    """Run a program once, on one microbatch. Answered by ``Ran`` or ``Failed``.

    Attributes:
        program: id of a program that is ready.
        microbatch: unique per epoch; a repeat of one of the last is dropped, whether it has run or not.
        lengths: tokens per sequence, [B]; all 1 when decoding. Their sum is T.
        positions: absolute position of each sequence's first token, [B].
        pages: the KV pages of each sequence, [B][...], in order.
        rows: the rows of the output head that are wanted, [R].
    """

    tensors = ("input",)  # token_ids int32 [T] or hidden_state float32 [T, D], as the program declares
    max_header_bytes = 2 << 20  # 64 sequences of 1,600 pages take 0.3 MB

    program: ProgramId
    microbatch: int
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]


class Ran(Message, frozen=True):
    """The result of a ``Run``.

    Attributes:
        compute_us: inside the kernels.
        queue_us: between arrival and start.
    """

    tensors = ("output",)  # float32 [T, D] or [R, V]

    program: ProgramId
    microbatch: int
    compute_us: int
    queue_us: int


class Failed(Message, frozen=True):
    """Something the coordinator asked for cannot be done; raised again there as the class ``kind``.

    Attributes:
        microbatch: which ``Run``, or -1 when it concerns the program or the lease.
        kind: a class of :mod:`ollama_zmq.errors`.
    """

    program: ProgramId
    microbatch: int
    kind: ErrorKind
    detail: Text


class Release(Message, frozen=True):
    """Forget a program, its KV cache and the weights no other program uses. Not answered."""

    program: ProgramId


class Bye(Message, frozen=True):
    """End the lease: the worker forgets everything. From a worker: it is being stopped. Not answered."""


ToWorker = Hello | Ping | Define | Put | Run | Release | Bye
ToCoordinator = Welcome | Refused | Pong | Defined | Stored | Ready | Ran | Failed | Bye
AnyMessage = ToWorker | ToCoordinator

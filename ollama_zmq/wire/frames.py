"""Messages to frames and back. No sockets, no clocks, no threads.

    frame 0    b"OZ" + one byte of protocol version
    frame 1    the header, a MessagePack map: "t" names the message; "epoch", "seq" and the message's fields;
               "tensors", a list of [name, dtype, [sizes]], absent when the message carries none
    frame 2..  one tensor each, little-endian, C order, in the order of the list

``epoch`` counts the connections of one broker to one worker, ``seq`` the messages of one side within an epoch: what
arrives with an older epoch is stale, and a step in ``seq`` is a message that got lost on the way.

Two versions must be able to tell each other apart, so ``Hello`` and ``Refused`` are read whatever the version byte
says; their fields only ever grow. Everything else of another version is refused before it is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from ollama_zmq import packing
from ollama_zmq.errors import LocalProtocolError, RemoteProtocolError
from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.messages import AnyMessage, Hello, Message, Refused

Array = npt.NDArray[Any]
Frame = Any  # whatever shows its bytes through the buffer protocol: bytes, memoryview, ndarray, zmq.Frame

MAGIC = b"OZ"
START = MAGIC + bytes([PROTOCOL])
SWAPS = sys.byteorder == "big"
DTYPES = {name: np.dtype(name).newbyteorder("<" if SWAPS else "=") for name in ("float32", "int32", "uint8", "float16")}
NAMES = {np.dtype(name): name for name in DTYPES}
MAX_HEADER_BYTES = 2 << 20  # the program of 126 layers with its weight sources takes under 0.5 MB
MAX_TENSORS = 8
MAX_DIMS = 4
MAX_EMPTY_SIZES = 1 << 40  # product of the sizes other than 0; NumPy refuses shapes far above it
MESSAGES: dict[str, type[Message]] = {str(cls.__struct_config__.tag): cls for cls in get_args(AnyMessage)}
TAGS = {cls: tag for tag, cls in MESSAGES.items()}
ANY_VERSION_TAGS = {TAGS[Hello], TAGS[Refused]}

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class TensorEntry(msgspec.Struct, frozen=True, array_like=True):
    """One row of the tensor list."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    dtype: Annotated[str, msgspec.Meta(max_length=16)]
    shape: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)], ...], msgspec.Meta(max_length=MAX_DIMS)
    ]


class Route(msgspec.Struct, frozen=True):
    """What a header says besides its message."""

    epoch: Counter
    seq: Counter
    tensors: Annotated[tuple[TensorEntry, ...], msgspec.Meta(max_length=MAX_TENSORS)] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """A message on its way, with its tensors.

    Attributes:
        tensors: tensor name -> array of float32, int32, uint8 or float16, exactly those that the message names.
        epoch: of the connection.
        seq: counts the sender's messages in this epoch, from 0.
    """

    message: AnyMessage
    tensors: Mapping[str, Array] = field(default_factory=dict)
    epoch: int = 0
    seq: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Envelope):
            return NotImplemented
        return (
            (self.message, self.epoch, self.seq) == (other.message, other.epoch, other.seq)
            and self.tensors.keys() == other.tensors.keys()
            and all(_same(array, other.tensors[name]) for name, array in self.tensors.items())
        )

    __hash__ = None  # type: ignore[assignment]


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def encode(envelope: Envelope) -> list[Frame]:
    """Return the frames of *envelope*. Tensor memory is shared, not copied.

    Raises:
        LocalProtocolError: missing, surplus, strided or unsupported tensor.
    """
    message, tensors = envelope.message, envelope.tensors
    if tuple(tensors) != message.tensors and tensors.keys() != set(message.tensors):
        raise LocalProtocolError(f"{_tag(message)}: tensors {sorted(tensors)}, expected {sorted(message.tensors)}")
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    header = {"epoch": envelope.epoch, "seq": envelope.seq, **fields}
    if message.tensors:
        header["tensors"] = [_entry(message, name, tensors[name]) for name in message.tensors]
    packed = packing.pack(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"{_tag(message)}: header of {len(packed)} bytes, at most {MAX_HEADER_BYTES}")
    bodies = [_body(tensors[name]) for name in message.tensors]
    return [START, packed, *bodies]


def _entry(message: AnyMessage, name: str, array: Array) -> tuple[str, str, tuple[int, ...]]:
    dtype = NAMES.get(array.dtype)
    if dtype is None:
        raise LocalProtocolError(f"{_tag(message)}.{name}: dtype {array.dtype} is not one of {', '.join(DTYPES)}")
    if not array.flags.c_contiguous:
        raise LocalProtocolError(f"{_tag(message)}.{name}: not C-contiguous")
    if array.ndim > MAX_DIMS:
        raise LocalProtocolError(f"{_tag(message)}.{name}: {array.ndim} dimensions, at most {MAX_DIMS}")
    return name, dtype, array.shape


def _body(array: Array) -> Frame:
    if not array.size:
        return b""
    if SWAPS:
        array = array.astype(DTYPES[NAMES[array.dtype]])
        return array.reshape(-1).view(np.uint8).data
    return array.data.cast("B")


def decode(frames: Sequence[Frame]) -> Envelope:
    """Return the envelope in *frames*. Arrays are read-only views of the frames, of any alignment.

    ``Hello`` and ``Refused`` are read in every protocol version.

    Raises:
        RemoteProtocolError: anything about the frames that the peer should not have sent. The peer's version is in
            ``facts["theirs"]`` when that is what is wrong.
    """
    if not 2 <= len(frames) <= 2 + MAX_TENSORS:
        raise RemoteProtocolError(f"{len(frames)} frames, expected 2 to {2 + MAX_TENSORS}")
    route, message = _header(_bytes(frames[1]), _version(frames[0]))
    names = tuple(entry.name for entry in route.tensors)
    if names != message.tensors:
        raise RemoteProtocolError(f"{_tag(message)}: tensors {list(names)}, expected {list(message.tensors)}")
    if len(frames) != 2 + len(names):
        raise RemoteProtocolError(f"{_tag(message)}: {len(frames)} frames, expected {2 + len(names)}")
    pairs = zip(route.tensors, frames[2:], strict=True)
    tensors = {entry.name: _array(entry, frame, message) for entry, frame in pairs}
    return Envelope(message, tensors, route.epoch, route.seq)


def _version(frame: Frame) -> int:
    if frame == START:
        return PROTOCOL
    data = _bytes(frame)
    if len(data) != 3 or data[:2] != MAGIC:
        shown = bytes(data[:8])
        raise RemoteProtocolError(f"frame 0 is {shown!r} ({len(data)} bytes), expected {MAGIC!r} and a version byte")
    return data[2]


def _header(data: memoryview, theirs: int) -> tuple[Route, AnyMessage]:
    if len(data) > MAX_HEADER_BYTES:
        raise RemoteProtocolError(f"header of {len(data)} bytes, at most {MAX_HEADER_BYTES}")
    try:
        plain = packing.unpack_plain(data)
    except ValueError as error:
        damaged = RemoteProtocolError(f"header: {error}")
        raise (damaged if theirs == PROTOCOL else _foreign(theirs)) from None
    tag = plain.get("t") if isinstance(plain, dict) else None
    if theirs != PROTOCOL and not (isinstance(tag, str) and tag in ANY_VERSION_TAGS):
        raise _foreign(theirs)
    message_type = MESSAGES.get(tag) if isinstance(tag, str) else None
    if message_type is None:
        raise RemoteProtocolError(f"header: unknown message {str(tag)[:32]!r}")
    try:
        return packing.as_record(plain, Route), packing.as_record(plain, message_type)
    except ValueError as error:
        raise RemoteProtocolError(f"header {tag!r}: {error}") from None


def _foreign(theirs: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"protocol {theirs}, this is protocol {PROTOCOL}: install the same version of ollama-zmq on both",
        theirs=theirs,
        ours=PROTOCOL,
    )


def _array(entry: TensorEntry, frame: Frame, message: AnyMessage) -> Array:
    data, dtype, shape = _bytes(frame), DTYPES.get(entry.dtype), entry.shape
    if dtype is None:
        raise _misfit(entry, message, f"dtype {entry.dtype!r} is not one of {', '.join(DTYPES)}")
    expected = prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise _misfit(entry, message, f"{len(data)} bytes, expected {expected} for {entry.dtype} {list(shape)}")
    if not expected and prod(size or 1 for size in shape) > MAX_EMPTY_SIZES:
        raise _misfit(entry, message, f"shape {list(shape)} of an empty tensor is out of range")
    array: Array = np.ndarray(shape, dtype, data if expected else None)
    if SWAPS:
        array = array.astype(dtype.newbyteorder("="))
    array.flags.writeable = False
    return array


def _misfit(entry: TensorEntry, message: AnyMessage, why: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"{_tag(message)}.{entry.name}: {why}")


def _bytes(frame: Frame) -> memoryview:
    view = memoryview(frame)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def _tag(message: AnyMessage) -> str:
    return TAGS[type(message)]

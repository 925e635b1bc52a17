"""Messages to frames and back. No sockets, no clocks, no threads.

    frame 0     byte 0      b"OZ", then one byte: the protocol version
                byte 3      length of the header, unsigned, 4 bytes, little-endian
                byte 7      the header, a MessagePack map: "t" names the message; "epoch", "seq" and the message's
                            fields; "tensors", a list of [name, dtype, [sizes]], absent when the message carries none
                behind it   the tensors of at most 64 KB, one after another without padding
    frame 1..   one larger tensor each

Tensors are little-endian, C order, in the order of the list.

``epoch`` counts the connections of one broker to one worker, ``seq`` the messages of one side within an epoch: what
arrives with an older epoch is stale, and a step in ``seq`` is a message that got lost on the way.

Two versions must be able to tell each other apart, so ``Hello`` and ``Refused`` are read whatever the version byte
says; their fields only ever grow. Everything else of another version is refused before it is looked at.

The weights of a token leave no cache warm for what comes between two steps, so what counts here is how much memory is
touched. A round trip of one token's bytes took 30 us less as a frame each way than as three. Below 64 KB pyzmq copies
in any case; above, a tensor that nobody writes to, such as one that was received, is sent without a copy. What a
header takes when it is read is bounded by its length, a few bytes for each of its own, whatever it says of its parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Annotated, Any, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from ollama_zmq.errors import LocalProtocolError, RemoteProtocolError
from ollama_zmq.version import PROTOCOL
from ollama_zmq.wire.messages import AnyMessage, Hello, Message, Refused

Array = npt.NDArray[Any]
Frame = Any  # whatever shows its bytes through the buffer protocol

MAGIC = b"OZ"
START = MAGIC + bytes([PROTOCOL])
HEADER_AT = 7
SWAPS = sys.byteorder == "big"
DTYPES = {name: np.dtype(name).newbyteorder("<" if SWAPS else "=") for name in ("float32", "int32", "uint8", "float16")}
NAMES = {np.dtype(name): name for name in DTYPES}
MAX_TENSORS = 8
INLINE_NBYTES = 64 << 10  # of a tensor in frame 0
MAX_DIMS = 4
MAX_EMPTY_SIZES = 1 << 40  # product of the sizes other than 0; NumPy refuses shapes far above it
TAGS: dict[type[Message], str] = {cls: str(cls.__struct_config__.tag) for cls in get_args(AnyMessage)}
MAX_HEADER_BYTES = max(cls.max_header_bytes for cls in TAGS)
LARGE_HEADERS = {TAGS[cls]: cls.max_header_bytes for cls in TAGS if cls.max_header_bytes > Message.max_header_bytes}

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Name = Annotated[str, msgspec.Meta(max_length=64)]
TensorEntry = tuple[Name, Name, Annotated[tuple[Size, ...], msgspec.Meta(max_length=MAX_DIMS)]]


class Tagged(msgspec.Struct, frozen=True):
    """Which message a header is of; nothing else of it is kept."""

    t: Name


class Route(msgspec.Struct, frozen=True):
    """What a header says besides its message. ``tensors``: name, dtype and sizes of each."""

    epoch: Counter
    seq: Counter
    tensors: Annotated[tuple[TensorEntry, ...], msgspec.Meta(max_length=MAX_TENSORS)] = ()


_pack = msgspec.msgpack.Encoder().encode
_tag_of = msgspec.msgpack.Decoder(Tagged).decode
_route_of = msgspec.msgpack.Decoder(Route).decode
_message_of = msgspec.msgpack.Decoder(AnyMessage).decode
_message_of_any_version = msgspec.msgpack.Decoder(Hello | Refused).decode


class Envelope(msgspec.Struct, frozen=True, eq=False):
    """A message on its way, with its tensors.

    Attributes:
        tensors: tensor name -> array of float32, int32, uint8 or float16, exactly those that the message names.
        epoch: of the connection.
        seq: counts the sender's messages in this epoch, from 0.
    """

    message: AnyMessage
    tensors: Mapping[str, Array] = msgspec.field(default_factory=dict)
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
    """Return the frames of *envelope*. Large tensors that are read-only are shared, all others are copied.

    What can be written to is a device's memory: its next output may come while libzmq still has the frame.

    Raises:
        LocalProtocolError: missing, surplus, strided or unsupported tensor.
    """
    message, tensors = envelope.message, envelope.tensors
    if tuple(tensors) != message.tensors and tensors.keys() != set(message.tensors):
        raise LocalProtocolError(f"{_tag(message)}: tensors {sorted(tensors)}, expected {sorted(message.tensors)}")
    fields = {"t": _tag(message), "epoch": envelope.epoch, "seq": envelope.seq, **msgspec.structs.asdict(message)}
    if message.tensors:
        fields["tensors"] = [_entry(message, name, tensors[name]) for name in message.tensors]
    header = _pack(fields)
    if len(header) > message.max_header_bytes:
        raise LocalProtocolError(f"{_tag(message)}: header of {len(header)} bytes, at most {message.max_header_bytes}")
    bodies = [_body(tensors[name]) for name in message.tensors]
    first = [body for body in bodies if body.nbytes <= INLINE_NBYTES]
    large = [body for body in bodies if body.nbytes > INLINE_NBYTES]
    start = b"".join((START, len(header).to_bytes(4, "little"), header, *first))
    return [start, *(body.cast("B") if body.readonly else body.tobytes() for body in large)]


def _entry(message: AnyMessage, name: str, array: Array) -> tuple[str, str, tuple[int, ...]]:
    dtype = NAMES.get(array.dtype)
    if dtype is None:
        raise LocalProtocolError(f"{_tag(message)}.{name}: dtype {array.dtype} is not one of {', '.join(DTYPES)}")
    if not array.flags.c_contiguous:
        raise LocalProtocolError(f"{_tag(message)}.{name}: not C-contiguous")
    if array.ndim > MAX_DIMS:
        raise LocalProtocolError(f"{_tag(message)}.{name}: {array.ndim} dimensions, at most {MAX_DIMS}")
    if array.nbytes > message.max_tensor_bytes:
        raise LocalProtocolError(f"{_tag(message)}.{name}: {array.nbytes} bytes, at most {message.max_tensor_bytes}")
    return name, dtype, array.shape


def _body(array: Array) -> memoryview:
    return (array.astype(DTYPES[NAMES[array.dtype]]) if SWAPS else array).data


def decode(frames: Sequence[Frame]) -> Envelope:
    """Return the envelope in *frames*. Arrays are read-only views of them, of any alignment.

    ``Hello`` and ``Refused`` are read in every protocol version.

    Raises:
        RemoteProtocolError: anything about the frames that the peer should not have sent. The peer's version is in
            ``facts["theirs"]`` when that is what is wrong.
    """
    if len(frames) > 1 + MAX_TENSORS:
        raise RemoteProtocolError(f"more than {1 + MAX_TENSORS} frames in a message")
    views = [memoryview(frame).toreadonly() for frame in frames] or [memoryview(b"")]
    route, message, at = _header(views[0])
    names = tuple(entry[0] for entry in route.tensors)
    if names != message.tensors:
        raise RemoteProtocolError(f"{_tag(message)}: tensors {list(names)}, expected {list(message.tensors)}")
    bodies = _bodies(route.tensors, message, views[0][at:], views[1:])
    return Envelope(message, dict(zip(names, bodies, strict=True)), route.epoch, route.seq)


def _header(view: memoryview) -> tuple[Route, AnyMessage, int]:
    """What the header says, and where it ends."""
    if len(view) < HEADER_AT or view[:2] != MAGIC:
        begins = bytes(view[:HEADER_AT])
        raise RemoteProtocolError(
            f"frame of {len(view)} bytes begins with {begins!r}, not {MAGIC!r}, version and length"
        )
    theirs, end = view[2], HEADER_AT + int.from_bytes(view[3:HEADER_AT], "little")
    try:
        if end > min(len(view), HEADER_AT + MAX_HEADER_BYTES):
            raise ValueError(f"{end - HEADER_AT} bytes in a frame of {len(view)}, at most {MAX_HEADER_BYTES}")
        data = view[HEADER_AT:end]
        if len(data) > Message.max_header_bytes:
            _check_large(data)
        return _route_of(data), _message_of(data) if theirs == PROTOCOL else _message_of_any_version(data), end
    except (ValueError, RecursionError) as error:
        raise (RemoteProtocolError(f"header: {error}") if theirs == PROTOCOL else _foreign(theirs)) from None


def _check_large(data: memoryview) -> None:
    """Refuse a header that only a message of another kind may have, before anything is made of it."""
    tag = _tag_of(data).t
    limit = LARGE_HEADERS.get(tag, Message.max_header_bytes)
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes of {tag!r}, at most {limit}")


def _foreign(theirs: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"protocol {theirs}, this is protocol {PROTOCOL}: install the same version of ollama-zmq on both",
        theirs=theirs,
        ours=PROTOCOL,
    )


def _bodies(
    entries: Sequence[TensorEntry], message: AnyMessage, small: memoryview, large: list[memoryview]
) -> Iterator[Array]:
    """The tensors that *entries* announce, one after another in *small* and one in each of *large*."""
    for name, type_name, shape in entries:
        dtype = DTYPES.get(type_name)
        if dtype is None:
            raise RemoteProtocolError(f"{_tag(message)}.{name}: dtype {type_name!r} is not one of {', '.join(DTYPES)}")
        nbytes = prod(shape) * dtype.itemsize
        if nbytes > message.max_tensor_bytes:
            raise RemoteProtocolError(f"{_tag(message)}.{name}: {nbytes} bytes, at most {message.max_tensor_bytes}")
        inline = nbytes <= INLINE_NBYTES
        body = small[:nbytes] if inline else large.pop(0) if large else memoryview(b"")
        if len(body) != nbytes:
            expected = f"expected {nbytes} for {type_name} {list(shape)}"
            raise RemoteProtocolError(f"{_tag(message)}.{name}: {len(body)} bytes, {expected}")
        if not nbytes and prod(size or 1 for size in shape) > MAX_EMPTY_SIZES:
            raise RemoteProtocolError(f"{_tag(message)}.{name}: shape {list(shape)} of an empty tensor is out of range")
        small = small[nbytes:] if inline else small
        array: Array = np.ndarray(shape, dtype, body) if nbytes else _empty(shape, dtype)
        yield array.astype(dtype.newbyteorder("=")) if SWAPS else array
    if small or large:
        raise RemoteProtocolError(f"{_tag(message)}: {len(small)} bytes and {len(large)} frames behind its tensors")


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    array: Array = np.empty(shape, dtype)
    array.flags.writeable = False
    return array


def _tag(message: AnyMessage) -> str:
    return TAGS[type(message)]

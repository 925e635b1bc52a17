"""Writes GGUF files, version 3, as chunks of bytes: whoever takes them may hash, store or send them.

The layout stands in :mod:`ollama_zmq.formats.gguf`. A tensor's bytes are asked for when their turn comes, so that a
model larger than the memory can be written.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ollama_zmq.formats.gguf import DEFAULT_ALIGNMENT, MAGIC
from ollama_zmq.formats.quants import QuantType, tensor_nbytes

VERSION = 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64 = 4, 5, 6, 7, 8, 9, 10, 11
_KINDS = {"u4": _U32, "i4": _I32, "f4": _F32, "u8": _U64, "i8": _I64, "b1": _BOOL}

Bytes = bytes | memoryview
Value = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to be written.

    Attributes:
        shape: row-major, outermost first.
        chunks: gives its bytes; called once.
    """

    name: str
    type: QuantType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Bytes]]

    @property
    def nbytes(self) -> int:
        """How many bytes its chunks have together."""
        return tensor_nbytes(self.type, self.shape)


def gguf_chunks(metadata: Mapping[str, Value], tensors: Sequence[NewTensor]) -> Iterator[Bytes]:
    """Yield the bytes of a GGUF file, piece by piece.

    Whole numbers become uint32, or int32 and 64 bits wide ones where they do not fit, other numbers float32; lists of
    numbers int32 or float32 arrays, arrays keep their dtype.

    Raises:
        ValueError: the chunks of a tensor are not as many bytes as its shape and type say.
    """
    header, offset = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))], 0
    header += [_string(key) + _typed(value) for key, value in metadata.items()]
    for tensor in tensors:
        dims = tensor.shape[::-1]
        header.append(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        header.append(struct.pack("<IQ", tensor.type.id, offset))
        offset += tensor.nbytes + _padding(tensor.nbytes)
    head = b"".join(header)
    yield head + bytes(_padding(len(head)))
    for tensor in tensors:
        written = 0
        for chunk in tensor.chunks():
            written += memoryview(chunk).nbytes
            yield chunk
        if written != tensor.nbytes:
            raise ValueError(f"tensor {tensor.name!r}: {written} bytes, expected {tensor.nbytes}")
        yield bytes(_padding(written))


def _padding(nbytes: int) -> int:
    return -nbytes % DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Value) -> bytes:
    """A value with its type in front."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return _whole_number(value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if len(value) and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    array = np.asarray(value)
    if not isinstance(value, np.ndarray) and array.dtype.kind in "if":
        array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
    kind = _KINDS[array.dtype.str[1:]]
    return struct.pack("<IIQ", _ARRAY, kind, len(array)) + array.astype(array.dtype.newbyteorder("<")).tobytes()


def _whole_number(value: int) -> bytes:
    for kind, code in ((_U32, "I"), (_I32, "i"), (_U64, "Q")):
        try:
            return struct.pack(f"<I{code}", kind, value)
        except struct.error:
            continue
    return struct.pack("<Iq", _I64, value)

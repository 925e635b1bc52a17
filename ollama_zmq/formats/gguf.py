"""GGUF files, read lazily through a memory map. Versions 2 and 3, little-endian.

    "GGUF"  u32 version  u64 n_tensors  u64 n_pairs
    n_pairs   x  string key, u32 value type, value
    n_tensors x  string name, u32 n_dims, u64 dims[n_dims] innermost first, u32 tensor type, u64 offset
    padding to general.alignment (32), then the tensors' bytes; offsets count from here

A string is a u64 length and that many bytes; an array is a u32 value type, a u64 count and the values.
Every count and length is compared with the size of the file before anything is allocated for it.

Opening sweeps the header once and keeps only where each array begins: 128k tokens and 280k merges are
stepped over in about 0.1 s and decoded when somebody asks. Strings are decoded as UTF-8 with
``surrogateescape``, because some vocabularies hold tokens that are not UTF-8:
``text.encode("utf-8", "surrogateescape")`` gives back the exact bytes of any of them.

Source: ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ollama_zmq.errors import ModelFileError, ShapeError
from ollama_zmq.formats.quants import QuantType, tensor_nbytes, type_of_id

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MIN_PAIR_NBYTES = 8 + 4 + 1
MIN_TENSOR_NBYTES = 8 + 4 + 4 + 8

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}
_DTYPES = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and what it is.

    Attributes:
        shape: row-major, outermost first: (N, K) for a matrix of N rows. The reverse of the file's order.
        offset: of the first byte, counted from the start of the file.
        nbytes: length of the tensor's bytes.
    """

    name: str
    type: QuantType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Array:
    """An array in the header that nobody has asked for yet."""

    kind: int
    count: int
    offset: int


class Metadata(Mapping[str, object]):
    """The key-value pairs of a header, in file order. Arrays are decoded when first asked for, then kept.

    Values are int, float, bool, str, list[str] (arrays of strings) or a NumPy array (arrays of numbers).
    Arrays that were not asked for before the file was closed are gone with it.
    """

    def __init__(self, data: mmap.mmap, pairs: dict[str, object]) -> None:
        self._data = data
        self._pairs = pairs

    def __getitem__(self, key: str) -> object:
        value = self._pairs[key]
        if isinstance(value, _Array):
            value = self._pairs[key] = _decode(self._data, value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, key: object) -> bool:
        return key in self._pairs

    def array_length(self, key: str) -> int | None:
        """Elements of the array *key* without decoding it; None if it is absent or no array."""
        value = self._pairs.get(key)
        if isinstance(value, _Array):
            return value.count
        return len(value) if hasattr(value, "__len__") and not isinstance(value, str) else None


class GgufFile:
    """An open GGUF file. Made by :func:`open_gguf`; a context manager.

    Attributes:
        path: as given.
        version: 2 or 3.
        metadata: the header's pairs.
        tensors: by name, in file order; empty for a file that holds a vocabulary only.
        nbytes: size of the file.
    """

    def __init__(
        self, path: Path, data: mmap.mmap, version: int, metadata: Metadata, tensors: dict[str, TensorInfo]
    ) -> None:
        self.path = path
        self.version = version
        self.metadata = metadata
        self.tensors = tensors
        self.nbytes = len(data)
        self._data = data

    @property
    def architecture(self) -> str:
        """``general.architecture``. Raises ModelFileError if the file does not say."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise ModelFileError(f"{self.path}: general.architecture is {name!r}, expected a name", path=str(self.path))
        return name

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors together."""
        total = 0
        for info in self.tensors.values():
            count = 1
            for size in info.shape:
                count *= size
            total += count
        return total

    def data(self, name: str) -> memoryview:
        """The bytes of tensor *name*: a read-only view of the map, nothing is read yet.

        Raises:
            ModelFileError: there is no such tensor.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileError(f"{self.path}: no tensor {name!r}", path=str(self.path), tensor=name)
        return memoryview(self._data)[info.offset : info.offset + info.nbytes]

    def close(self) -> None:
        """Let go of the map. Views that are still in use keep it alive until the last of them is gone."""
        try:
            self._data.close()
        except BufferError:  # exported pointers exist
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Open the GGUF file at *path* and check its whole header; tensor bytes are not read.

    Raises:
        ModelFileError: it cannot be read, is no GGUF of version 2 or 3, or is truncated or damaged; the
            message names the file, the thing in it and its value.
    """
    path = Path(path)
    data = _map(path)
    try:
        return _parse(path, data)
    except BaseException:
        data.close()
        raise


def _map(path: Path) -> mmap.mmap:
    """A read-only map of the whole file, which begins with the magic."""
    try:
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path}: not a file", path=str(path))
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise ModelFileError(
                    f"{path}: not a GGUF file: it begins with {magic!r}, not {MAGIC!r}", path=str(path)
                )
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}", path=str(path)) from error


def _parse(path: Path, data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(path, data)
    version = _version(cursor)
    n_tensors = cursor.u64("the tensor count")
    n_pairs = cursor.u64("the metadata count")
    cursor.check_count(n_pairs, MIN_PAIR_NBYTES, "metadata pairs")
    pairs: dict[str, object] = {}
    for index in range(n_pairs):
        key = cursor.string(f"the key of metadata pair {index}")
        if key in pairs:
            raise cursor.error(f"metadata key {key!r} appears twice")
        pairs[key] = _value(cursor, key)
    cursor.check_count(n_tensors, MIN_TENSOR_NBYTES, "tensors")
    declared = [_tensor(cursor, index) for index in range(n_tensors)]
    alignment = _alignment(cursor, pairs)
    start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, data, version, Metadata(data, pairs), _place(cursor, declared, start, alignment))


class _Cursor:
    """Walks through the header; every step is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = len(MAGIC)

    def error(self, message: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {message}", path=str(self.path))

    def step(self, nbytes: int, what: str) -> int:
        """Offset of the next *nbytes* bytes, which are stepped over."""
        start = self.position
        if nbytes > self.size - start:
            raise self.error(
                f"truncated header: {what} needs {nbytes} bytes at {start}, the file has {self.size}: download it again"
            )
        self.position = start + nbytes
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.step(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.step(8, what))[0])

    def string(self, what: str) -> str:
        length = self.u64(f"the length of {what}")
        start = self.step(length, what)
        return self.data[start : start + length].decode("utf-8", "surrogateescape")

    def check_count(self, count: int, min_nbytes: int, what: str) -> None:
        """Refuse a count of things that the rest of the file cannot hold."""
        rest = self.size - self.position
        if count * min_nbytes > rest:
            raise self.error(
                f"{count} {what} do not fit in the remaining {rest} bytes: the file is damaged or truncated"
            )

    def skip_strings(self, count: int, what: str) -> None:
        """Step over *count* strings. This loop is most of the time of opening a file."""
        unpack, data, position, last = _U64.unpack_from, self.data, self.position, self.size - 8
        for index in range(count):
            if position > last:
                self.position = min(position, self.size)
                self.step(8, f"string {index} of {what}")
            position += 8 + unpack(data, position)[0]
        if position > self.size:
            raise self.error(f"truncated header: {what} ends at {position}, but the file has {self.size} bytes")
        self.position = position


def _version(cursor: _Cursor) -> int:
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
        raise cursor.error("big-endian GGUF files are not supported: convert the model to little-endian")
    raise cursor.error(f"GGUF version {version} is not supported, only 2 and 3: convert the model again")


def _value(cursor: _Cursor, key: str) -> object:
    """The next value; arrays are stepped over."""
    what = f"metadata {key!r}"
    kind = cursor.u32(f"the type of {what}")
    if kind == _STRING:
        return cursor.string(what)
    if kind == _ARRAY:
        return _skip_array(cursor, what)
    if kind not in _STRUCTS:
        raise cursor.error(f"{what} has unknown value type {kind}")
    layout = _STRUCTS[kind]
    value: object = layout.unpack_from(cursor.data, cursor.step(layout.size, what))[0]
    return value


def _skip_array(cursor: _Cursor, what: str) -> _Array:
    kind = cursor.u32(f"the element type of {what}")
    count = cursor.u64(f"the length of {what}")
    if kind == _ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which is not supported")
    if kind != _STRING and kind not in _STRUCTS:
        raise cursor.error(f"{what} has unknown element type {kind}")
    cursor.check_count(count, 8 if kind == _STRING else _STRUCTS[kind].size, f"elements of {what}")
    array = _Array(kind, count, cursor.position)
    if kind == _STRING:
        cursor.skip_strings(count, what)
    else:
        cursor.step(count * _STRUCTS[kind].size, what)
    return array


def _decode(data: mmap.mmap, array: _Array) -> object:
    """The values of *array*, copied out of the map; its bounds were checked when the file was opened."""
    position = array.offset
    if array.kind != _STRING:
        import numpy as np

        dtype = np.dtype(_DTYPES[array.kind])
        raw = data[position : position + array.count * dtype.itemsize]
        return np.frombuffer(raw, dtype=dtype)
    unpack, strings = _U64.unpack_from, []
    for _ in range(array.count):
        start = position + 8
        position = start + unpack(data, position)[0]
        strings.append(data[start:position].decode("utf-8", "surrogateescape"))
    return strings


@dataclass(frozen=True, slots=True)
class _Declared:
    """A tensor as its header entry has it; *offset* counts from the start of the tensor data."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _tensor(cursor: _Cursor, index: int) -> _Declared:
    name = cursor.string(f"the name of tensor {index}")
    what = f"tensor {name!r}"
    n_dims = cursor.u32(f"the rank of {what}")
    if n_dims > MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, more than {MAX_DIMS}")
    shape = tuple(cursor.u64(f"the shape of {what}") for _ in range(n_dims))[::-1]
    if 0 in shape:
        raise cursor.error(f"{what} has no elements: its shape is {shape}")
    try:
        kind = type_of_id(cursor.u32(f"the type of {what}"))
        nbytes = tensor_nbytes(kind, shape)
    except (ModelFileError, ShapeError) as error:
        if str(error).startswith(str(cursor.path)):
            raise
        raise cursor.error(f"{what}: {error}") from None
    return _Declared(name, kind, shape, cursor.u64(f"the offset of {what}"), nbytes)


def _alignment(cursor: _Cursor, pairs: dict[str, object]) -> int:
    alignment = pairs.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > cursor.size:
        raise cursor.error(f"general.alignment is {alignment!r}, expected a power of two")
    return alignment


def _place(cursor: _Cursor, declared: list[_Declared], start: int, alignment: int) -> dict[str, TensorInfo]:
    """Tensors by name, with their absolute offsets; all of them lie within the file."""
    tensors: dict[str, TensorInfo] = {}
    needed = 0
    for tensor in declared:
        if tensor.name in tensors:
            raise cursor.error(f"tensor {tensor.name!r} appears twice")
        if tensor.offset % alignment:
            raise cursor.error(
                f"tensor {tensor.name!r} begins at {tensor.offset}, which is not a multiple of {alignment}"
            )
        offset = start + tensor.offset
        needed = max(needed, offset + tensor.nbytes)
        tensors[tensor.name] = TensorInfo(tensor.name, tensor.type, tensor.shape, offset, tensor.nbytes)
    if needed > cursor.size:
        missing = needed - cursor.size
        raise cursor.error(
            f"truncated: {missing} bytes of tensor data are missing ({cursor.size} of {needed}): download it again"
        )
    return tensors

"""The header of a GGUF file: strings, scalars and arrays, read through a memory map.

The layout stands in :mod:`ollama_zmq.formats.gguf`. Keys and strings are UTF-8; what is not becomes U+FFFD, so
that they can be shown and sent anywhere. Strings in arrays are decoded with ``surrogateescape``, because some
vocabularies hold tokens that are not UTF-8: ``text.encode("utf-8", "surrogateescape")`` gives back the exact bytes
of any of them, and :func:`readable` what may be shown.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ollama_zmq.errors import ModelFileError

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_STRUCTS = {kind: struct.Struct("<" + code) for kind, code in _SCALARS.items()}
MAX_NAME_NBYTES = 65_535  # of a key, as the format's specification has it, and of a tensor's name
MAX_SHOWN = 120
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

    def changed(self, changes: Mapping[str, object], without: Container[str] = ()) -> Metadata:
        """Return these pairs with *changes* in place of or beside their own, and none of the keys in *without*."""
        kept = {key: value for key, value in self._pairs.items() if key not in without}
        return Metadata(self._data, kept | dict(changes))

    def array_length(self, key: str) -> int | None:
        """Elements of the array *key* without decoding it; None if it is absent or no array."""
        value = self._pairs.get(key)
        if isinstance(value, _Array):
            return value.count
        return len(value) if hasattr(value, "__len__") and not isinstance(value, str) else None


def readable(text: str) -> str:
    """A string of an array as it may be shown: bytes that were not UTF-8 are U+FFFD."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class Cursor:
    """Walks through the header; every step is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = position

    def error(self, message: str) -> ModelFileError:
        """An error that names the file."""
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
        return self.data[start : start + length].decode("utf-8", "replace")

    def name(self, what: str) -> str:
        """A string that names something."""
        start = self.position
        text = self.string(what)
        if self.position - start - 8 > MAX_NAME_NBYTES:
            raise self.error(f"{what} has {self.position - start - 8} bytes, more than {MAX_NAME_NBYTES}")
        return text

    def check_limit(self, count: int, limit: int, what: str) -> None:
        """Refuse a count that no real file has."""
        if count > limit:
            raise self.error(f"{count} {what}, more than {limit}: the file is damaged, or made to waste time")

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


def read_value(cursor: Cursor, key: str) -> object:
    """The next value; arrays are stepped over."""
    what = f"metadata {key[:MAX_SHOWN]!r}"
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


def _skip_array(cursor: Cursor, what: str) -> _Array:
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

"""Bounded MessagePack: typed records to bytes and back, with limits set before any memory is touched.

Every record that crosses a process border is a ``msgspec.Struct``. Encoding is deterministic (fields in
declaration order, mappings by key), so equal records have equal bytes and a digest is an identity. Decoding goes
through ``msgpack`` because it takes limits on every container, then ``msgspec.convert`` checks types and ranges.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgpack
import msgspec

Record = TypeVar("Record")

MAX_STR_LEN = 4096
MAX_BIN_LEN = 8 << 20
MAX_ARRAY_LEN = 1 << 17
MAX_MAP_LEN = 4096
MAX_CONTAINERS = 1 << 17  # lists and maps in all: of the largest program, 8,000 calls over 20,000 values, half of it


def pack(record: Any) -> bytes:
    """Return the MessagePack bytes of *record*; equal records give equal bytes."""
    return msgspec.msgpack.encode(record, order="deterministic")


def unpack(data: bytes | memoryview, record_type: type[Record] | Any) -> Record:
    """Return the *record_type* in *data*.

    Raises:
        ValueError: not MessagePack, over a limit, trailing bytes, or not such a record. The message says what.
    """
    record: Record = as_record(unpack_plain(data), record_type)
    return record


def unpack_plain(data: bytes | memoryview) -> Any:
    """Return what is in *data* as plain dicts, lists, numbers, texts and bytes.

    Raises:
        ValueError: not MessagePack, over a limit, or trailing bytes.
    """
    counted = _Counted()
    try:
        return msgpack.unpackb(
            data,
            list_hook=counted,
            object_hook=counted,
            strict_map_key=True,
            max_str_len=MAX_STR_LEN,
            max_bin_len=MAX_BIN_LEN,
            max_array_len=MAX_ARRAY_LEN,
            max_map_len=MAX_MAP_LEN,
            max_ext_len=0,
        )
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"not valid MessagePack: {error or type(error).__name__}") from None


class _Counted:
    """Takes every list and map that is decoded as it is, until there are too many."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def __call__(self, container: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {MAX_CONTAINERS} lists and maps")
        return container


def as_record(plain: Any, record_type: type[Record] | Any) -> Record:
    """Return *plain* data as the *record_type* it must be; unknown fields are ignored.

    Raises:
        ValueError: a field is missing or of the wrong type. The message says which.
    """
    try:
        converted: Record = msgspec.convert(plain, record_type)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return converted

"""safetensors files, read through a memory map.

    u64 length of the header   JSON {name: {"dtype": "BF16", "shape": [N, K], "data_offsets": [begin, end]}, ...}
    then the tensors' bytes, row-major and little-endian; offsets count from their start

The JSON may have one more entry, ``__metadata__``, of strings. Every offset is checked before a byte is read: the parts
of two tensors do not overlap, and each is as long as its shape and type say.

Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.foreign import json_value

MAX_HEADER_NBYTES = 100_000_000  # as the format has it
MAX_DIMS = 4
MAX_SHOWN = 120
METADATA = "__metadata__"
ELEMENT_NBYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file and what it is.

    Attributes:
        dtype: as the file spells it, ``BF16``.
        shape: row-major, outermost first; empty for a single number.
        offset: of the first byte, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file. Made by :func:`open_safetensors`; a context manager.

    Attributes:
        path: as given.
        tensors: by name, in the order of their bytes.
    """

    def __init__(self, path: Path, data: mmap.mmap, tensors: dict[str, StoredTensor]) -> None:
        self.path = path
        self.tensors = tensors
        self._data = data

    def data(self, name: str) -> memoryview:
        """The bytes of tensor *name*: a read-only view of the map, nothing is read yet. Raises KeyError."""
        tensor = self.tensors[name]
        return memoryview(self._data)[tensor.offset : tensor.offset + tensor.nbytes]

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


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open the file at *path* and check its whole header; tensor bytes are not read.

    Raises:
        ModelFileError: it cannot be read, is no safetensors file, or is truncated or damaged; the message names the
            file, the tensor and the value.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = 8 + int.from_bytes(file.read(8), "little")
            if not 8 < start <= min(size, MAX_HEADER_NBYTES):
                raise _error(path, f"no safetensors file: its header would end at byte {start} of {size}")
            header = file.read(start - 8)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise _error(path, f"cannot be read: {error.strerror or error}") from error
    try:
        return SafetensorsFile(path, data, _placed(path, _entries(path, header), start, size))
    except BaseException:
        data.close()
        raise


def _error(path: Path, text: str) -> ModelFileError:
    return ModelFileError(f"{path}: {text}", path=str(path))


def _entries(path: Path, header: bytes) -> dict[str, Any]:
    try:
        entries = json_value(header)
    except (ValueError, RecursionError) as error:
        raise _error(path, f"no safetensors file: its header is no JSON: {error}") from None
    if not isinstance(entries, dict):
        raise _error(path, "no safetensors file: its header is no JSON object")
    return {name: entry for name, entry in entries.items() if name != METADATA}


def _placed(path: Path, entries: dict[str, Any], start: int, size: int) -> dict[str, StoredTensor]:
    """The tensors in the order of their bytes, none of which belongs to two of them."""
    tensors = sorted((_tensor(path, name, entry, start) for name, entry in entries.items()), key=lambda one: one.offset)
    end = start
    for tensor in tensors:
        what = f"tensor {tensor.name[:MAX_SHOWN]!r}"
        if tensor.offset < end:
            raise _error(path, f"{what} begins at {tensor.offset - start}, inside the one before it")
        end = tensor.offset + tensor.nbytes
        if end > size:
            raise _error(path, f"{what} ends at byte {end}, but the file has {size}: download it again")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, start: int) -> StoredTensor:
    what = f"tensor {name[:MAX_SHOWN]!r}"
    found = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = found.get("dtype"), found.get("shape"), found.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ELEMENT_NBYTES:
        known = ", ".join(ELEMENT_NBYTES)
        raise _error(path, f"{what} has dtype {dtype!r:.{MAX_SHOWN}}, expected one of {known}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise _error(path, f"{what} has shape {shape!r:.{MAX_SHOWN}}, expected up to {MAX_DIMS} whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _error(path, f"{what} has data_offsets {offsets!r:.{MAX_SHOWN}}, expected two whole numbers")
    begin, end = offsets
    if end - begin != prod(shape) * ELEMENT_NBYTES[dtype]:
        raise _error(path, f"{what} has {end - begin} bytes, but {dtype} of shape {shape} has another number")
    return StoredTensor(name, dtype, tuple(shape), start + begin, end - begin)


def _are_sizes(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)

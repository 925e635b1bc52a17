"""GGUF files, read lazily through a memory map. Versions 2 and 3, little-endian.

    "GGUF"  u32 version  u64 n_tensors  u64 n_pairs
    n_pairs   x  string key, u32 value type, value
    n_tensors x  string name, u32 n_dims, u64 dims[n_dims] innermost first, u32 tensor type, u64 offset
    padding to general.alignment (32), then the tensors' bytes; offsets count from here

A string is a u64 length and that many bytes; an array is a u32 value type, a u64 count and the values.
Every count and length is compared with the size of the file before anything is allocated for it; a file has at most
65,536 pairs and as many tensors (the largest ones known have 100 and 3,000), so no header takes seconds.

Opening sweeps the header once and keeps only where each array begins: 128k tokens and 280k merges are
stepped over in about 0.1 s and decoded when somebody asks.

Source: ggml's ``docs/gguf.md``.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from ollama_zmq.errors import ModelFileError, ShapeError
from ollama_zmq.formats.gguf_header import MAX_SHOWN, Cursor, Metadata, read_value
from ollama_zmq.formats.quants import QuantType, tensor_nbytes, type_of_id

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_PAIRS = MAX_TENSORS = 65_536
MIN_PAIR_NBYTES = 8 + 4 + 1
MIN_TENSOR_NBYTES = 8 + 4 + 4 + 8


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

    def rows(self, name: str, start: int, stop: int) -> TensorInfo:
        """Return rows *start* to *stop* of the outermost axis as a tensor called *name*; the bytes are the same.

        Raises:
            ShapeError: they do not begin and end with whole blocks, as in a vector of a quantized type.
        """
        n_rows = self.shape[0]
        if not 0 <= start < stop <= n_rows:
            raise ShapeError(f"tensor {self.name!r}: rows {start}..{stop - 1} of {n_rows}", tensor=self.name)
        if len(self.shape) == 1:  # its elements are the rows, and may share a block
            before, nbytes = (
                tensor_nbytes(self.type, (start,)) if start else 0,
                tensor_nbytes(self.type, (stop - start,)),
            )
        else:
            before, nbytes = self.nbytes // n_rows * start, self.nbytes // n_rows * (stop - start)
        return TensorInfo(name, self.type, (stop - start, *self.shape[1:]), self.offset + before, nbytes)


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
            raise ModelFileError(
                f"{self.path}: general.architecture is {name!r:.{MAX_SHOWN}}, expected a name", path=str(self.path)
            )
        return name

    @property
    def n_parameters(self) -> int:
        """Elements of all tensors together."""
        return sum(prod(info.shape) for info in self.tensors.values())

    def data(self, name: str) -> memoryview:
        """The bytes of tensor *name*: a read-only view of the map, nothing is read yet.

        Raises:
            ModelFileError: there is no such tensor.
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileError(f"{self.path}: no tensor {name!r}", path=str(self.path), tensor=name)
        return memoryview(self._data)[info.offset : info.offset + info.nbytes]

    def with_header(self, metadata: Metadata, tensors: dict[str, TensorInfo]) -> GgufFile:
        """Return the same open file under another header; to close one of the two is to close both."""
        return GgufFile(self.path, self._data, self.version, metadata, tensors)

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
    cursor = Cursor(path, data, len(MAGIC))
    version = _version(cursor)
    n_tensors = cursor.u64("the tensor count")
    n_pairs = cursor.u64("the metadata count")
    cursor.check_count(n_pairs, MIN_PAIR_NBYTES, "metadata pairs")
    cursor.check_limit(n_pairs, MAX_PAIRS, "metadata pairs")
    pairs: dict[str, object] = {}
    for index in range(n_pairs):
        key = cursor.name(f"the key of metadata pair {index}")
        if key in pairs:
            raise cursor.error(f"metadata key {key[:MAX_SHOWN]!r} appears twice")
        pairs[key] = read_value(cursor, key)
    cursor.check_count(n_tensors, MIN_TENSOR_NBYTES, "tensors")
    cursor.check_limit(n_tensors, MAX_TENSORS, "tensors")
    declared = [_tensor(cursor, index) for index in range(n_tensors)]
    alignment = _alignment(cursor, pairs)
    start = -(-cursor.position // alignment) * alignment
    return GgufFile(path, data, version, Metadata(data, pairs), _place(cursor, declared, start, alignment))


def _version(cursor: Cursor) -> int:
    version = cursor.u32("the version")
    if version in VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *VERSIONS):
        raise cursor.error("big-endian GGUF files are not supported: convert the model to little-endian")
    raise cursor.error(f"GGUF version {version} is not supported, only 2 and 3: convert the model again")


@dataclass(frozen=True, slots=True)
class _Declared:
    """A tensor as its header entry has it; *offset* counts from the start of the tensor data."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _tensor(cursor: Cursor, index: int) -> _Declared:
    name = cursor.name(f"the name of tensor {index}")
    what = f"tensor {name[:MAX_SHOWN]!r}"
    n_dims = cursor.u32(f"the rank of {what}")
    if n_dims > MAX_DIMS:
        raise cursor.error(f"{what} has {n_dims} dimensions, more than {MAX_DIMS}")
    shape = tuple(cursor.u64(f"the shape of {what}") for _ in range(n_dims))[::-1]
    if 0 in shape:
        raise cursor.error(f"{what} has no elements: its shape is {shape}")
    type_id = cursor.u32(f"the type of {what}")
    try:
        kind = type_of_id(type_id)
        nbytes = tensor_nbytes(kind, shape)
    except (ModelFileError, ShapeError) as error:
        raise cursor.error(f"{what}: {error}") from None
    return _Declared(name, kind, shape, cursor.u64(f"the offset of {what}"), nbytes)


def _alignment(cursor: Cursor, pairs: dict[str, object]) -> int:
    alignment = pairs.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > cursor.size:
        raise cursor.error(f"general.alignment is {alignment!r}, expected a power of two")
    return alignment


def _place(cursor: Cursor, declared: list[_Declared], start: int, alignment: int) -> dict[str, TensorInfo]:
    """Tensors by name, with their absolute offsets; all of them lie within the file."""
    tensors: dict[str, TensorInfo] = {}
    needed = 0
    for tensor in declared:
        what = f"tensor {tensor.name[:MAX_SHOWN]!r}"
        if tensor.name in tensors:
            raise cursor.error(f"{what} appears twice")
        if tensor.offset % alignment:
            raise cursor.error(f"{what} begins at {tensor.offset}, which is not a multiple of {alignment}")
        offset = start + tensor.offset
        needed = max(needed, offset + tensor.nbytes)
        tensors[tensor.name] = TensorInfo(tensor.name, tensor.type, tensor.shape, offset, tensor.nbytes)
    if needed > cursor.size:
        missing = needed - cursor.size
        raise cursor.error(
            f"truncated: {missing} bytes of tensor data are missing ({cursor.size} of {needed}): download it again"
        )
    return tensors

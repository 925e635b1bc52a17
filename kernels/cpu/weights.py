"""Weights in memory: which types are packed and how, and the memory they stand in.

A matrix, or each of a stack of experts [X, N, K], is packed into groups of 16 rows (``formats.h``) in the type of the
file, or the one that :mod:`recode` names; a vector (a norm's weight, a bias, RoPE's factors) becomes float32. Small
weights share slabs of 64 MB (a slab allocator), so that all of them stand on huge pages.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import prod

from ollama_zmq.devices.base import Array, Budget
from ollama_zmq.errors import ModelFileError, OutOfDeviceMemory, ShapeError, UnsupportedOp
from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.mapped import drop_resident_pages
from ollama_zmq.formats.quants import QuantType, tensor_nbytes, type_of_id
from ollama_zmq.kernels.cpu import simd
from ollama_zmq.kernels.cpu.memory import Memory
from ollama_zmq.kernels.cpu.pool import Pool
from ollama_zmq.kernels.cpu.recode import RECODED
from ollama_zmq.ops.program import WeightSpec
from ollama_zmq.units import human_bytes

GROUP_ROWS = 16
ALIGNMENT = 64
SLAB_NBYTES = 64 << 20
VECTOR_TYPES = frozenset({QuantType.F32, QuantType.F16, QuantType.BF16})


@dataclass(frozen=True, slots=True)
class Format:
    """A tensor type that matrices may have here.

    Attributes:
        index: number of the packed format in the kernels.
        block_size, block_nbytes: of the packed format.
        activation: the kind of panels that meet it.
    """

    index: int
    block_size: int
    block_nbytes: int
    activation: int


_PACKED = {number: Format(*record) for number, record in simd.formats().items()}
FORMATS = {number: found for number, found in _PACKED.items() if number >= 0}
FORMATS |= {number: _PACKED[recoding.target] for number, recoding in RECODED.items()}
PACKED_AT_ONCE = 4 << 20  # bytes of the file: steps wait no longer than that takes, and no more of it stays in memory


def format_of(spec: WeightSpec) -> Format:
    """Return the format of a matrix.

    Raises:
        UnsupportedOp: its type has no kernels.
        ShapeError: its rows are no whole number of blocks, or it is no matrix.
    """
    found = FORMATS.get(spec.type)
    if found is None:
        names = ", ".join(sorted(type_of_id(number).name for number in FORMATS))
        raise UnsupportedOp(
            f"{spec.name}: type {_type_name(spec.type)} has no CPU kernel, only {names}", type=spec.type
        )
    block_size = type_of_id(spec.type).block_size
    if len(spec.shape) not in (2, 3) or spec.shape[-1] % block_size:
        expected = f"[N, K] or [X, N, K] with K in blocks of {block_size}"
        raise ShapeError(f"{spec.name}: shape {list(spec.shape)}, expected {expected}")
    return found


def _type_name(number: int) -> str:
    try:
        return type_of_id(number).name
    except ModelFileError:
        return str(number)


def weight_nbytes(spec: WeightSpec) -> int:
    """Return the bytes a weight takes in memory. Raises as :func:`format_of`."""
    if len(spec.shape) == 1:
        if type_of_id(spec.type) not in VECTOR_TYPES:
            raise UnsupportedOp(
                f"{spec.name}: a vector of type {_type_name(spec.type)} has no CPU kernel", type=spec.type
            )
        return _aligned(4 * spec.shape[0])
    return _aligned(prod(spec.shape[:-2]) * matrix_nbytes(spec))


def matrix_nbytes(spec: WeightSpec) -> int:
    """Return the packed bytes of a matrix, or of one of a stack; rows are padded to whole groups."""
    found = format_of(spec)
    N, K = spec.shape[-2:]
    return groups_of(N) * GROUP_ROWS * (K // found.block_size * found.block_nbytes)


def groups_of(n_rows: int) -> int:
    """Return how many groups a matrix has; the last one is padded."""
    return -(-n_rows // GROUP_ROWS)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class CpuWeight:
    """A weight that programs can use.

    Attributes:
        address: where it stands.
        values: float32 of a vector; None for a matrix.
    """

    def __init__(self, spec: WeightSpec, nbytes: int, allocation: Allocation) -> None:
        self.spec = spec
        self.nbytes = nbytes
        self.values: Array | None = None
        self._allocation: Allocation | None = allocation

    @property
    def is_open(self) -> bool:
        return self._allocation is not None

    @property
    def address(self) -> int:
        if self._allocation is None:
            raise ShapeError(f"{self.spec.name}: closed")
        return self._allocation.address

    def fill(self, data: memoryview, pool: Pool) -> Iterator[None]:
        """Bring the file's bytes into their place, a part each time."""
        if len(self.spec.shape) == 1:
            self.values = self._floats()
            self.values[:] = dequantize(type_of_id(self.spec.type), data, self.spec.shape)
        else:
            count = prod(self.spec.shape[:-2])
            nbytes = data.nbytes // count
            for i in range(count):
                matrix = data[i * nbytes : (i + 1) * nbytes]
                yield from self._pack(matrix, self.address + i * matrix_nbytes(self.spec), pool)

    def _pack(self, matrix: memoryview, address: int, pool: Pool) -> Iterator[None]:
        """Pack a matrix, some groups at a time."""
        N, K = self.spec.shape[-2:]
        row_nbytes, packed_nbytes = matrix.nbytes // N, matrix_nbytes(self.spec) // groups_of(N)
        step = max(PACKED_AT_ONCE // row_nbytes // GROUP_ROWS, 1) * GROUP_ROWS
        for first in range(0, N, step):
            rows = matrix[first * row_nbytes : (first + step) * row_nbytes]
            self._pack_rows(rows, min(step, N - first), K, address + first // GROUP_ROWS * packed_nbytes, pool)
            drop_resident_pages(rows)
            yield

    def _pack_rows(self, rows: memoryview, N: int, K: int, address: int, pool: Pool) -> None:
        recoding = RECODED.get(self.spec.type)
        if recoding is None:
            pool.pack(FORMATS[self.spec.type].index, rows, N, K, address)
        else:
            pool.recode(recoding.kind.name, recoding.table, rows, N, K, address)

    def seen_as(self, spec: WeightSpec) -> CpuWeight:
        """Return the first bytes of its memory as another weight, which is not to be closed: to measure with."""
        assert self._allocation is not None
        return CpuWeight(spec, weight_nbytes(spec), self._allocation)

    def touch(self) -> None:
        """Fill it, with no subnormal numbers, so that the system has given it memory: a weight to measure with."""
        assert self._allocation is not None
        begin = self._allocation.offset
        self._allocation.slab.memory.bytes()[begin : begin + self.nbytes] = 64

    def _floats(self) -> Array:
        assert self._allocation is not None
        floats: Array = self._allocation.slab.memory.floats(self._allocation.offset, self.spec.shape[0])
        return floats

    def close(self) -> None:
        """Free it. Executables that use it must be closed before."""
        if self._allocation is not None:
            allocation, self._allocation, self.values = self._allocation, None, None
            allocation.release()


@dataclass(slots=True)
class Slab:
    """One mapping that weights stand in one behind the other; given back when the last of them goes."""

    memory: Memory
    used: int = 0
    allocations: int = 0


@dataclass(frozen=True, slots=True)
class Allocation:
    """A weight's part of a slab."""

    slab: Slab
    offset: int
    nbytes: int
    allocator: SlabAllocator

    @property
    def address(self) -> int:
        return int(self.slab.memory.address) + self.offset

    def release(self) -> None:
        self.allocator.release(self)


class SlabAllocator:
    """Hands out memory for weights and takes it back, every byte of it counted in the budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        self._slabs: list[Slab] = []

    def take(self, nbytes: int, what: str) -> Allocation:
        """Return *nbytes* of zeroed memory.

        Raises:
            OutOfDeviceMemory: the budget or the system does not allow it; nothing is counted then.
        """
        with self._lock:
            self._budget.take(nbytes, what)
            slab = next((slab for slab in self._slabs if slab.used + nbytes <= slab.memory.nbytes), None)
            if slab is None:
                slab = Slab(self._mapped(max(nbytes, SLAB_NBYTES), nbytes, what))
                self._slabs.append(slab)
            allocation = Allocation(slab, slab.used, nbytes, self)
            slab.used += nbytes
            slab.allocations += 1
            return allocation

    def _mapped(self, mapped: int, nbytes: int, what: str) -> Memory:
        try:
            return Memory(mapped)
        except MemoryError:
            self._budget.give(nbytes)
            raise OutOfDeviceMemory(
                f"{what} needs {human_bytes(nbytes)}, which the system refused", what=what
            ) from None

    def release(self, allocation: Allocation) -> None:
        """Take an allocation back: its pages go to the system at once, its addresses when the slab is empty."""
        with self._lock:
            allocation.slab.allocations -= 1
            allocation.slab.memory.forget(allocation.offset, allocation.nbytes)
            if not allocation.slab.allocations:
                self._slabs.remove(allocation.slab)
                allocation.slab.memory.close()
            self._budget.give(allocation.nbytes)


def weight_in_parts(
    spec: WeightSpec, data: memoryview, allocator: SlabAllocator, pool: Pool
) -> Generator[None, None, CpuWeight]:
    """Bring the bytes of a weight in the file into memory, part by part, and return the weight.

    Raises:
        ModelFileError: *data* has not the length that type and shape ask for.
        OutOfDeviceMemory: the budget does not allow it.
        UnsupportedOp: no kernel for the type.
    """
    nbytes = weight_nbytes(spec)
    expected = tensor_nbytes(type_of_id(spec.type), spec.shape)
    if data.nbytes != expected:
        raise ModelFileError(
            f"{spec.name}: {data.nbytes} bytes, but {_type_name(spec.type)} {list(spec.shape)} has {expected} "
            f"({prod(spec.shape)} values)"
        )
    weight = CpuWeight(spec, nbytes, allocator.take(nbytes, spec.name))
    try:
        yield from weight.fill(data.cast("B"), pool)
    except BaseException:
        weight.close()
        raise
    return weight

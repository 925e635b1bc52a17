"""What a device is. Three keep this promise: ``reference`` (NumPy, float64 inside), ``cpu`` and ``cuda``.

A device is given verified programs and the bytes of weights; it returns executables. It knows nothing of models,
sequences, sockets or other devices.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from ollama_zmq.errors import OpError, OutOfDeviceMemory, ShapeError
from ollama_zmq.ops.program import Program, Verified, WeightSpec
from ollama_zmq.ops.state import PAGE_SLOTS, PagedKvSpec
from ollama_zmq.units import human_bytes
from ollama_zmq.wire.messages import MatrixSpeed

Array = npt.NDArray[Any]
INT32_MAX = 2**31 - 1
T = TypeVar("T")


class Step(msgspec.Struct, frozen=True):
    """One forward pass over T tokens of B sequences.

    Plain tuples, as they came in a message: arrays of a few integers cost more to make than to read.

    Attributes:
        lengths: [B], tokens of each sequence in this pass; their sum is T.
        positions: [B], absolute position of each sequence's first token in this pass.
        pages: [B][...], the KV pages of each sequence in order, covering positions + lengths.
        rows: [R], which of the T rows the output head is wanted for.
    """

    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...] = ()
    rows: tuple[int, ...] = ()

    @property
    def T(self) -> int:  # noqa: N802 - the axis symbol
        """Tokens in this pass."""
        return sum(self.lengths)

    @classmethod
    def of(cls, lengths: Any, positions: Any, pages: Any = (), rows: Any = ()) -> Step:
        """Return a step from any flat sequences of integers, arrays among them.

        Raises:
            ShapeError: one of them is something else.
        """
        return cls(
            _integers("lengths", lengths),
            _integers("positions", positions),
            tuple(_integers(f"pages[{b}]", table) for b, table in enumerate(pages)),
            _integers("rows", rows),
        )

    def check(self, *, max_tokens: int, max_rows: int, kv_pages: int, uses_pages: bool) -> None:
        """Refuse a step that would read or write outside what was planned for.

        Raises:
            ShapeError: naming the field, the value and the limit.
        """
        lengths, positions, T = self.lengths, self.positions, self.T
        B = len(lengths)
        if len(positions) != B or (uses_pages and len(self.pages) != B):
            raise ShapeError(f"lengths [{B}], positions [{len(positions)}], pages [{len(self.pages)}] differ")
        if B and (min(lengths) < 1 or min(positions) < 0):
            raise ShapeError("lengths start at 1 and positions at 0")
        if max_tokens < T:
            raise ShapeError(f"T={T} tokens, planned for {max_tokens}")
        if B and max(positions) > INT32_MAX - T:
            raise ShapeError(f"positions are up to {max(positions)}, expected at most {INT32_MAX - T}")
        if len(self.rows) > min(T, max_rows):
            raise ShapeError(f"{len(self.rows)} rows are wanted of {T}, planned for {max_rows}")
        _check_range("rows", self.rows, T)
        for b in range(B if uses_pages else 0):
            table, end = self.pages[b], positions[b] + lengths[b]
            if end > len(table) * PAGE_SLOTS:
                raise ShapeError(f"pages[{b}] hold {len(table) * PAGE_SLOTS} slots, position {end - 1} needs more")
            if len(table) > kv_pages:
                raise ShapeError(f"pages[{b}] are {len(table)}, but the cache has {kv_pages}")
            _check_range(f"pages[{b}]", table, kv_pages)

    def check_end(self, n_positions: int) -> None:
        """Raises ShapeError if a token stands outside 0..n_positions - 1, as where each position has a row."""
        for start, n in zip(self.positions, self.lengths, strict=False):
            if start < 0 or start + n > n_positions:
                raise ShapeError(
                    f"positions are {start}..{start + n - 1}, expected 0..{n_positions - 1}", arg="positions"
                )

    def token_positions(self) -> Array:
        """Return int32 [T], the absolute position of every token."""
        ranges = [np.arange(start, start + n) for start, n in zip(self.positions, self.lengths, strict=True)]
        return np.concatenate([np.zeros(0, np.int32), *ranges]).astype(np.int32)


def paged_states(program: Program) -> tuple[PagedKvSpec, ...]:
    """Return what a program keeps of its sequences, all of it in the pages of a step's one table for each of them.

    Raises:
        OpError: a state is kept in slots or in pages of another group than 0, for which a step has no numbers.
    """
    for state in program.states:
        if not isinstance(state, PagedKvSpec):
            raise OpError(f"state {state.name!r}: a step has no slots, expected keys and values in pages")
        if state.group != 0:
            raise OpError(f"state {state.name!r}: group {state.group}, but a step has the page tables of group 0 only")
    return tuple(state for state in program.states if isinstance(state, PagedKvSpec))


def _integers(name: str, values: Any) -> tuple[int, ...]:
    """Return *values* as plain integers; nothing is wrapped or cut."""
    try:
        array = np.asarray(values if len(values) else np.zeros(0, np.int32))
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name}: no sequence of integers: {error}", arg=name) from None
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ShapeError(f"{name}: {array.dtype} {array.shape}, expected integers on one axis", arg=name)
    integers = tuple(array.tolist())
    if integers and not -INT32_MAX - 1 <= min(integers) <= max(integers) <= INT32_MAX:
        raise ShapeError(f"{name} are {min(integers)}..{max(integers)}, expected 32-bit integers", arg=name)
    return integers


def _check_range(name: str, indices: tuple[int, ...], limit: int) -> None:
    if indices and not 0 <= min(indices) <= max(indices) < limit:
        raise ShapeError(f"{name} are {min(indices)}..{max(indices)}, expected 0..{limit - 1}", arg=name)


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a device reached when it measured itself.

    Attributes:
        decode_bytes_per_s: weight bytes streamed per second by a mat-vec.
        prefill_macs_per_s: multiply-adds per second of a mat-mul over many tokens. Both of Q8_0.
        matrices: the same of each tensor type; one that is not there is taken for Q8_0.
        values_per_s: numbers that ops without a matrix pass on per second, over many tokens; 0 for not measured.
        call_s: seconds of an op that hardly computes.
    """

    decode_bytes_per_s: float
    prefill_macs_per_s: float
    matrices: tuple[MatrixSpeed, ...] = ()
    values_per_s: float = 0.0
    call_s: float = 0.0


class Budget:
    """Memory that may be used and how much of it is.

    Every allocation of weights, KV pages and scratch is taken from it first, so ``-m`` is a limit and not a hint.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @property
    def free(self) -> int:
        """Bytes that can still be taken."""
        return self.limit - self.used

    def take(self, nbytes: int, what: str) -> None:
        """Count *nbytes* as used by *what*.

        Raises:
            OutOfDeviceMemory: there is not that much left; nothing is counted then.
        """
        if nbytes > self.free:
            raise OutOfDeviceMemory(
                f"{what} needs {human_bytes(nbytes)}, {human_bytes(max(self.free, 0))} of the budget of "
                f"{human_bytes(self.limit)} is free",
                what=what,
                need=nbytes,
                free=self.free,
                budget=self.limit,
            )
        self.used += nbytes

    def give(self, nbytes: int) -> None:
        """Count *nbytes* as free again."""
        self.used -= nbytes


class DeviceWeight(Protocol):
    """A weight in the device's own layout."""

    spec: WeightSpec
    nbytes: int

    def close(self) -> None:
        """Free it. Executables that use it must be closed before."""


class Executable(Protocol):
    """A program that is ready to run, with its KV cache and scratch memory."""

    verified: Verified
    nbytes: int

    def run(self, array: Array, step: Step) -> Array:
        """Run the program once: its one input in, its one output out.

        Args:
            array: int32 [T] or float32 [T, D], C-contiguous, of any alignment; it is not kept and not written.

        Returns:
            float32, a view of scratch memory that is valid until the next ``run``.

        Raises:
            ShapeError: the step or the input does not fit what was planned; nothing has been written then.
        """

    def close(self) -> None:
        """Free cache and scratch."""


def whole(parts: Generator[None, None, T]) -> T:
    """What *parts* return at their end, all of them done at once."""
    try:
        while True:
            next(parts)
    except StopIteration as end:
        made: T = end.value
        return made


class Device(Protocol):
    """A place where programs run."""

    kind: str  # "cpu", "cuda", "reference"
    name: str  # for a person: "AMD EPYC 9R14, AVX-512 VNNI, 2 threads"
    threads: int
    budget: Budget

    def check(self, verified: Verified) -> None:
        """Raise :class:`~ollama_zmq.errors.UnsupportedOp` naming an op or tensor type that has no kernel here."""

    def weight_nbytes(self, spec: WeightSpec) -> int:
        """Return the bytes that a weight takes once loaded."""

    def executable_nbytes(
        self, verified: Verified, *, kv_pages: int, max_tokens: int, max_rows: int | None = None, threads: int = 0
    ) -> int:
        """Return the bytes that ``compile`` will take for KV cache and scratch."""

    def load_weight(self, spec: WeightSpec, data: memoryview) -> DeviceWeight:
        """Bring the file's bytes of one weight into the device's layout.

        Raises:
            ModelFileError: *data* has not the length that type and shape ask for.
            OutOfDeviceMemory: the budget does not allow it.
        """

    def weight_in_parts(self, spec: WeightSpec, data: memoryview) -> Generator[None, None, DeviceWeight]:
        """The same in parts of some ms each, between which programs may run; closed early, it leaves nothing."""

    def compile(
        self,
        verified: Verified,
        weights: Mapping[str, DeviceWeight],
        *,
        kv_pages: int,
        max_tokens: int,
        max_rows: int | None = None,
        threads: int = 0,
    ) -> Executable:
        """Plan memory and resolve kernels for a program.

        Args:
            weights: weight name -> what ``load_weight`` returned for it.
            kv_pages: pages of ``PAGE_SLOTS`` tokens in the KV cache of each layer.
            max_tokens: the most tokens one step will carry.
            max_rows: the most rows one step will ask for; as many as tokens if None.
            threads: the most threads to run it with; 0 for as many as the device has.

        Raises:
            UnsupportedOp, OutOfDeviceMemory
        """

    def measure(self) -> Speeds:
        """Measure the device's speed, in well under a second."""

    def close(self) -> None:
        """Free everything."""

"""A program on the CPU: its plan, its memory, its run."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from math import prod
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ollama_zmq.devices.base import Array, Budget, Step, paged_states
from ollama_zmq.errors import OpError, OutOfDeviceMemory, ShapeError
from ollama_zmq.kernels.cpu import program as compiled
from ollama_zmq.kernels.cpu.memory import Memory
from ollama_zmq.kernels.cpu.plan import Plan, PlannedOp, StepKind, Value, plan
from ollama_zmq.kernels.cpu.pool import Pool
from ollama_zmq.kernels.cpu.weights import FORMATS, CpuWeight
from ollama_zmq.ops.program import POSITIONS, Verified, check_inputs, n_rows_looked_up
from ollama_zmq.ops.registry import OPS, op_named
from ollama_zmq.ops.rope import scales
from ollama_zmq.ops.spec import Shape
from ollama_zmq.ops.state import PagedKvSpec
from ollama_zmq.units import human_bytes

if TYPE_CHECKING:
    from ollama_zmq.kernels.cpu.simd import Kernels

ALIGNMENT = 64
NUMBERS_PER_TOKEN = 5 * 4 + 8  # position, page, row, pages of a table, first token; a page table's address


def cache_nbytes(cache: PagedKvSpec, kv_pages: int) -> int:
    """Return the bytes of one layer's pages. Heads that are no multiple of 16 (q8_0: 32) are padded."""
    return kv_pages * cache.n_kv_heads * int(compiled.page_nbytes(cache))


def executable_nbytes(planned: Plan, verified: Verified, threads: int, *, kv_pages: int, max_tokens: int) -> int:
    """Return the bytes of KV cache, scratch and bookkeeping."""
    caches = sum(_aligned(cache_nbytes(cache, kv_pages)) for cache in paged_states(verified.program))
    return (
        caches
        + _aligned(planned.scratch_nbytes)
        + threads * _thread_nbytes(planned, verified)
        + _softmax_states_nbytes(planned, verified, kv_pages, max_tokens)
        + _numbers_nbytes(planned, max_tokens)
    )


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _attended(planned: Plan, verified: Verified) -> list[tuple[PlannedOp, PagedKvSpec]]:
    """Return every attention with the cache it attends to."""
    caches: dict[Value, PagedKvSpec] = {cache.name: cache for cache in paged_states(verified.program)}
    return [(op, caches[op.reads[1]]) for step in planned.steps for op in step.ops if op.op == "attention"]


def _thread_nbytes(planned: Plan, verified: Verified) -> int:
    """Return the bytes of scratch that attention takes on each thread."""
    needs = (int(compiled.attention_scratch_nbytes(cache)) for _, cache in _attended(planned, verified))
    return _aligned(max(needs, default=0))


def _softmax_states_nbytes(planned: Plan, verified: Verified, kv_pages: int, max_tokens: int) -> int:
    """Return the bytes of KV splits' softmax states: every query head over the whole cache, in up to 32 sequences."""
    splits = -(-kv_pages // compiled.SPLIT_PAGES) + min(max_tokens, 32)
    attended = _attended(planned, verified)
    heads = (op.attrs["n_heads"] * int(compiled.softmax_state_nbytes(cache)) for op, cache in attended)
    return _aligned(splits * max(heads, default=0))


def _frequency_ops(planned: Plan) -> list[PlannedOp]:
    return [op for step in planned.steps for op in step.ops if op.op == "angles"]


def _numbers_nbytes(planned: Plan, max_tokens: int) -> int:
    frequencies = sum(_aligned(4 * op.attrs["rotary_dim"]) for op in _frequency_ops(planned))
    return NUMBERS_PER_TOKEN * (max_tokens + 1) + frequencies


def frequencies(attrs: Mapping[str, Any], factors: Array | None) -> Array:
    """Return float64 [rotary_dim / 2]: what RoPE multiplies a position with.

    Powers are taken in decimal arithmetic, which rounds the same everywhere; libm's pow does not.
    """
    dim, theta = attrs["rotary_dim"], Decimal(attrs["theta"])
    with localcontext() as context:
        context.prec = 30
        powers = [theta ** (Decimal(-2 * i) / dim) for i in range(dim // 2)]
    scaled = np.array([float(power) for power in powers]) * scales(attrs)
    return scaled if factors is None else scaled / factors.astype(np.float64)


def _attributes(op: PlannedOp) -> dict[str, Any]:
    """Return an op's attributes as a row's record has them: numbers in order, a word's place, and all by name."""
    declared = OPS[op.op].attrs if op.op in OPS else {}
    words = [attr.choices.index(op.attrs[name]) for name, attr in declared.items() if attr.type is str]
    numbers = [float(op.attrs[name]) for name, attr in declared.items() if attr.type is not str]
    return op.attrs | {"numbers": numbers, "choice": words[0] if words else 0}


class CpuExecutable:
    """A program that is ready to run. One caller at a time."""

    def __init__(
        self,
        verified: Verified,
        weights: Mapping[str, CpuWeight],
        kernels: Kernels,
        pool: Pool,
        budget: Budget,
        *,
        threads: int,
        kv_pages: int,
        max_tokens: int,
        max_rows: int,
    ) -> None:
        self.verified = verified
        self.kv_pages, self.max_tokens, self.max_rows = kv_pages, max_tokens, max_rows
        self._plan = plan(verified, max_tokens, max_rows)
        self.nbytes = executable_nbytes(self._plan, verified, threads, kv_pages=kv_pages, max_tokens=max_tokens)
        self._budget = budget
        self._memory = _taken(self.nbytes, verified.program.name, budget)
        self._uses_pages = any(op_named(call.op).uses_pages for call in verified.program.calls)
        self._vocabulary = n_rows_looked_up(verified, verified.input.name) or 0
        self._n_positions = n_rows_looked_up(verified, POSITIONS)
        self._caches: dict[Value, int] = {}
        self._cache_specs: dict[Value, PagedKvSpec] = {cache.name: cache for cache in paged_states(verified.program)}
        self._place_caches()
        self._weights = dict(weights)
        self._shapes: Mapping[Any, Shape] = verified.shapes
        self._frequencies: dict[Value, Array] = {}
        thread_nbytes = _thread_nbytes(self._plan, verified)
        scratch = self._scratch + _aligned(self._plan.scratch_nbytes)
        self._program = compiled.CompiledProgram(
            kernels,
            pool,
            len(self._plan.steps),
            scratch=scratch,
            thread_scratch=thread_nbytes // 4,
            softmax_states=scratch + threads * thread_nbytes,
            n_state_floats=_softmax_states_nbytes(self._plan, verified, kv_pages, max_tokens) // 4,
            max_tokens=max_tokens,
            max_rows=max_rows,
            kv_pages=kv_pages if self._uses_pages else -1,
            width=int(verified.input.shape[1]) if len(verified.input.shape) == 2 else 0,
            vocabulary=self._vocabulary,
        )
        self._output = self._address(verified.output.name) - int(self._memory.address)
        self._output_width = int(verified.output.shape[1])
        for step in self._plan.steps:
            self._add(step.kind, step.symbol, step.ops)

    def _place_caches(self) -> None:
        address = int(self._memory.address)
        for cache in paged_states(self.verified.program):
            self._caches[cache.name] = address
            address += _aligned(cache_nbytes(cache, self.kv_pages))
        self._scratch = address

    def _add(self, kind: StepKind, symbol: str, ops: list[PlannedOp]) -> None:
        if kind is StepKind.ROWS:
            self._program.add_rows(symbol, [self._row_record(op) for op in ops])
        elif kind in (StepKind.LINEAR, StepKind.EXPERTS):
            parts = [self._linear_part(op) for op in ops]
            self._program.add_linears(symbol, parts, of_experts=kind is StepKind.EXPERTS)
        elif kind is StepKind.GATHER:
            (op,) = ops
            chosen = self._at(chosen=op.reads[0]) if op.reads else {"chosen": 0, "chosen_nbytes": 0}
            self._program.add_gather(symbol, op.attrs | chosen | self._at(slots=op.writes))
        else:
            (op,) = ops
            q, cache = op.reads
            places = (
                self._at(q=q, out=op.writes) | self._cache_at("cache", cache) | self._weight_at("sinks", op.weights[0])
            )
            self._program.add_attention(places, self._cache_specs[cache], op.attrs)

    def _address(self, value: Value) -> int:
        return self._scratch + self._plan.offsets[value]

    def _at(self, **values: Value) -> dict[str, int]:
        """Return where each value stands and, as NAME_nbytes, what it may take there: debug builds check that."""
        places = {name: self._address(value) for name, value in values.items()}
        return places | {f"{name}_nbytes": self._plan.sizes[value] for name, value in values.items()}

    def _cache_at(self, name: str, cache: Value) -> dict[str, int]:
        return {name: self._caches[cache], f"{name}_nbytes": cache_nbytes(self._cache_specs[cache], self.kv_pages)}

    def _weight_at(self, name: str, weight: str) -> dict[str, int]:
        """The same of a weight; zeros where an op has none."""
        if not weight:
            return {name: 0, f"{name}_nbytes": 0}
        return {name: self._weights[weight].address, f"{name}_nbytes": self._weights[weight].nbytes}

    def _linear_part(self, op: PlannedOp) -> dict[str, int]:
        spec = self._weights[op.weights[0]].spec
        part = {"format": FORMATS[spec.type].index, "N": spec.shape[-2], "K": spec.shape[-1]}
        part |= self._weight_at("weight", op.weights[0]) | self._at(x=op.reads[0], out=op.writes)
        return part | self._at(slots=op.reads[1]) | op.attrs if op.op == "expert_linear" else part

    def _row_record(self, op: PlannedOp) -> dict[str, Any]:
        """Return the members of ``struct row_op`` (rows/table.h); a declared op's follow from its declaration."""
        record: dict[str, Any] = {"kind": op.op, "width": self._width(op)} | _attributes(op)
        record |= self._cache_at("out", op.writes) if op.op == "store_kv" else self._at(out=op.writes)
        for name, value in zip("ab", op.reads, strict=False):
            record |= self._at(**{name: value}) | {f"{name}_width": self._floats_of_row(value)}
        for value in op.reads:
            record |= self._at(slots=value) if value[0] == "slots" else {}
        record["weights"] = [self._row_weight(weight) for weight in op.weights]
        match op.op:
            case "angles":
                factors = self._weights[op.weights[0]].values if op.weights[0] else None
                made = self._frequencies[op.writes] = frequencies(op.attrs, factors)
                record["weights"] = [{"at": made.ctypes.data, "count": made.size, "nbytes": made.nbytes}]
                record["numbers"] = [op.attrs["magnitude"]]
            case "embed" | "expert_bias":
                record["format"] = FORMATS[self._weights[op.weights[0]].spec.type].index
                if op.op == "embed":
                    record["numbers"] = [op.attrs["of_positions"]]
            case "rope":
                record["b_width"] = op.attrs["rotary_dim"]
            case "store_kv":
                record |= {"n_heads": op.attrs["n_kv_heads"], "cache": self._cache_specs[op.writes]}
        return record

    def _row_weight(self, name: str) -> dict[str, int]:
        """A vector or a packed matrix; zeros where the call has none."""
        if not name:
            return {"at": 0, "count": 0, "nbytes": 0}
        weight = self._weights[name]
        return {"at": weight.address, "count": prod(weight.spec.shape), "nbytes": weight.nbytes}

    def _floats_of_row(self, value: Value) -> int:
        """What stands in a row of a value of the program; 0 for what the plan added."""
        return int(self._shapes[value][1]) if isinstance(value, str) else 0

    def _width(self, op: PlannedOp) -> int:
        if op.op == "angles":
            return int(op.attrs["rotary_dim"])
        if op.op == "pack_slots":
            return int(op.attrs["width"])
        if op.op in ("pack", "store_kv"):
            return int(self._shapes[op.reads[0]][1])
        return int(self._shapes[op.writes][1])

    def run(self, array: Array, step: Step) -> Array:
        """Run the program once. See :class:`~ollama_zmq.devices.base.Executable`."""
        if not self.is_open:
            raise OpError(f"program {self.verified.program.name!r}: closed")
        if self._n_positions is not None:
            step.check_end(self._n_positions)
        if not self._program.run(array, step.lengths, step.positions, step.pages, step.rows):
            self._refuse(array, step)
        rows = len(step.rows) if self.verified.output.shape[0] == "R" else step.T
        out: Array = self._memory.floats(self._output, rows * self._output_width).reshape(rows, self._output_width)
        return out

    def _refuse(self, array: Array, step: Step) -> NoReturn:
        """Say why a step does not fit; it was found out where it costs least, and told in a word."""
        step.check(
            max_tokens=self.max_tokens,
            max_rows=self.max_rows,
            kv_pages=self.kv_pages,
            uses_pages=self._uses_pages,
        )
        check_inputs(self.verified, array, step.T)
        at = next((t for t, token_id in enumerate(array) if not 0 <= token_id < self._vocabulary), 0)
        raise ShapeError(f"token_ids[{at}]={array[at]} is not in 0..{self._vocabulary - 1}")

    @property
    def is_open(self) -> bool:
        return bool(self._memory.address)

    def close(self) -> None:
        """Free cache and scratch."""
        if self.is_open:
            self._memory.close()
            self._budget.give(self.nbytes)


def _taken(nbytes: int, name: str, budget: Budget) -> Memory:
    what = f"KV cache and scratch of program {name!r}"
    budget.take(nbytes, what)
    try:
        return Memory(nbytes)
    except MemoryError:
        budget.give(nbytes)
        raise OutOfDeviceMemory(f"{what} needs {human_bytes(nbytes)}, which the system refused", what=what) from None

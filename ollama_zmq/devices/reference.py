"""The reference device: a program interpreted op by op in NumPy. Plain and slow; the others are measured against it.

Weights are dequantized when loaded and kept as float32. Inside an op everything is float64; what an op writes is
rounded to float32, and keys and values to the type of their cache, as the declarations say. Batch invariance is not
promised: NumPy's matrix product may order its sums by the shape it is given.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from math import prod
from time import perf_counter
from typing import Any

import numpy as np

from ollama_zmq.devices.base import Array, Budget, DeviceWeight, Speeds, Step, paged_states
from ollama_zmq.devices.reference_ops import FUNCTIONS, KvCache
from ollama_zmq.errors import ModelFileError, OpError, ShapeError, UnsupportedOp
from ollama_zmq.formats.dequantize import SUPPORTED, dequantize
from ollama_zmq.formats.quants import QuantType, tensor_nbytes, type_of_id
from ollama_zmq.ops.program import (
    POSITIONS,
    ROWS,
    Call,
    Verified,
    WeightSpec,
    check_inputs,
    n_rows_looked_up,
    row_floats,
)
from ollama_zmq.ops.registry import op_named

FLOAT32_NBYTES = 4
MEASURED_SIZE = 1024
MEASURED_TOKENS = 64


class ReferenceWeight:
    """A weight as float32 of its shape."""

    def __init__(self, spec: WeightSpec, values: Array, budget: Budget) -> None:
        self.spec = spec
        self.nbytes = values.nbytes
        self.values = values
        self._budget = budget
        self._open = True

    def close(self) -> None:
        """Free it. Executables that use it must be closed before."""
        if self._open:
            self._open = False
            self.values = np.zeros(0, np.float32)
            self._budget.give(self.nbytes)


class ReferenceExecutable:
    """A program with its weights and its KV cache."""

    def __init__(
        self,
        verified: Verified,
        weights: Mapping[str, Array],
        budget: Budget,
        *,
        kv_pages: int,
        max_tokens: int,
        max_rows: int,
    ) -> None:
        self.verified = verified
        self.nbytes = _executable_nbytes(verified, kv_pages=kv_pages, max_tokens=max_tokens)
        budget.take(self.nbytes, f"program {verified.program.name!r}")
        self._budget = budget
        self._weights = dict(weights)
        self._caches = {spec.name: KvCache.empty(spec, kv_pages) for spec in paged_states(verified.program)}
        self._uses_pages = any(op_named(call.op).uses_pages for call in verified.program.calls)
        self._kv_pages = kv_pages
        self._max_tokens, self._max_rows = max_tokens, max_rows
        self._open = True

    def run(self, array: Array, step: Step) -> Array:
        """Run the program once; see :class:`ollama_zmq.devices.base.Executable`."""
        if not self._open:
            raise OpError(f"program {self.verified.program.name!r} is closed")
        step.check(
            max_tokens=self._max_tokens,
            max_rows=self._max_rows,
            kv_pages=self._kv_pages,
            uses_pages=self._uses_pages,
        )
        check_inputs(self.verified, array, step.T)
        self._check_token_ids(array, step)
        values: dict[str, Any] = {self.verified.input.name: array, POSITIONS: step.token_positions()}
        values[ROWS] = np.array(step.rows, np.int32)
        values |= self._weights | self._caches
        with np.errstate(all="ignore"):  # like any kernel, it makes inf and NaN without a word
            for call in self.verified.program.calls:
                _carry_out(call, values, step)
        return np.array(values[self.verified.output.name], np.float32)

    def close(self) -> None:
        """Free cache and scratch."""
        if self._open:
            self._open = False
            self._weights, self._caches = {}, {}
            self._budget.give(self.nbytes)

    def _check_token_ids(self, array: Array, step: Step) -> None:
        V = n_rows_looked_up(self.verified, self.verified.input.name)
        if V is not None and len(array):
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= V:
                raise ShapeError(f"token ids are {low}..{high}, expected 0..{V - 1}", arg="token_ids")
        if (n_positions := n_rows_looked_up(self.verified, POSITIONS)) is not None:
            step.check_end(n_positions)


class ReferenceDevice:
    """NumPy on this machine. See :class:`ollama_zmq.devices.base.Device`."""

    kind = "reference"
    name = f"NumPy {np.__version__}, float64"
    threads = 1

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._executables: list[ReferenceExecutable] = []
        self._weights: list[ReferenceWeight] = []

    def check(self, verified: Verified) -> None:
        """Raise UnsupportedOp naming an op or tensor type that is not known here."""
        for call in verified.program.calls:
            if call.op not in FUNCTIONS:
                raise UnsupportedOp(f"op {call.op!r} has no function on the reference device", op=call.op)
        for spec in verified.program.weights:
            _type_of(spec)

    def weight_nbytes(self, spec: WeightSpec) -> int:
        """Return the bytes that a weight takes once loaded."""
        return prod(spec.shape) * FLOAT32_NBYTES

    def executable_nbytes(
        self, verified: Verified, *, kv_pages: int, max_tokens: int, max_rows: int | None = None, threads: int = 0
    ) -> int:
        """Return the bytes that ``compile`` will take for KV cache and scratch."""
        return _executable_nbytes(verified, kv_pages=kv_pages, max_tokens=max_tokens)

    def load_weight(self, spec: WeightSpec, data: memoryview) -> ReferenceWeight:
        """Dequantize one weight."""
        kind = _type_of(spec)
        expected = tensor_nbytes(kind, spec.shape)
        if len(data) != expected:
            raise ModelFileError(f"weight {spec.name!r}: {len(data)} bytes, expected {expected}", weight=spec.name)
        self.budget.take(self.weight_nbytes(spec), f"weight {spec.name!r}")
        weight = ReferenceWeight(spec, dequantize(kind, data, spec.shape), self.budget)
        self._weights.append(weight)
        return weight

    def weight_in_parts(self, spec: WeightSpec, data: memoryview) -> Generator[None, None, ReferenceWeight]:
        """Dequantize one weight, in one part."""
        yield from ()
        return self.load_weight(spec, data)

    def compile(
        self,
        verified: Verified,
        weights: Mapping[str, DeviceWeight],
        *,
        kv_pages: int,
        max_tokens: int,
        max_rows: int | None = None,
        threads: int = 0,
    ) -> ReferenceExecutable:
        """Make a program ready to run."""
        self.check(verified)
        values = {spec.name: _values_of(spec, weights) for spec in verified.program.weights}
        rows = max_tokens if max_rows is None else max_rows
        made = ReferenceExecutable(
            verified, values, self.budget, kv_pages=kv_pages, max_tokens=max_tokens, max_rows=rows
        )
        self._executables.append(made)
        return made

    def measure(self) -> Speeds:
        """Measure a float64 product of one row and of many."""
        weight = np.ones((MEASURED_SIZE, MEASURED_SIZE), np.float32)
        one, many = np.ones((1, MEASURED_SIZE), np.float32), np.ones((MEASURED_TOKENS, MEASURED_SIZE), np.float32)
        return Speeds(
            decode_bytes_per_s=weight.nbytes / _seconds(one, weight),
            prefill_macs_per_s=MEASURED_TOKENS * weight.size / _seconds(many, weight),
        )

    def close(self) -> None:
        """Free everything."""
        for executable in self._executables:
            executable.close()
        for weight in self._weights:
            weight.close()


def _carry_out(call: Call, values: dict[str, Any], step: Step) -> None:
    op = op_named(call.op)
    read = {n: values[call.args[n]] for n in op.names("input", "weight", "state") if n in call.args}
    given = {"step": step} if op.uses_pages else {}
    result = FUNCTIONS[call.op](**given, **read, **call.attrs)
    for name in op.names("output"):
        values[call.args[name]] = result.astype(np.float32)


def _executable_nbytes(verified: Verified, *, kv_pages: int, max_tokens: int) -> int:
    caches = sum(spec.nbytes(kv_pages) for spec in paged_states(verified.program))
    return caches + max_tokens * row_floats(verified) * FLOAT32_NBYTES


def _type_of(spec: WeightSpec) -> QuantType:
    try:
        kind = type_of_id(spec.type)
    except ModelFileError as error:
        raise UnsupportedOp(f"weight {spec.name!r}: {error}", weight=spec.name) from None
    if kind not in SUPPORTED:
        raise UnsupportedOp(f"weight {spec.name!r}: type {kind.name} is not known here", weight=spec.name)
    tensor_nbytes(kind, spec.shape)  # whole blocks, or ShapeError
    return kind


def _values_of(spec: WeightSpec, weights: Mapping[str, DeviceWeight]) -> Array:
    weight = weights.get(spec.name)
    # Two names may be of the same bytes.
    if not isinstance(weight, ReferenceWeight) or (weight.spec.type, weight.spec.shape) != (spec.type, spec.shape):
        found = "not loaded" if weight is None else f"loaded as {weight.spec}"
        raise OpError(f"weight {spec.name!r} is {found}, the program needs {spec}", weight=spec.name)
    return weight.values


def _seconds(x: Array, weight: Array) -> float:
    """Return the time of the fastest of three products."""
    best = float("inf")
    for _ in range(3):
        started = perf_counter()
        FUNCTIONS["linear"](x, weight)
        best = min(best, perf_counter() - started)
    return best

"""How fast the device is, by running what it will run: a matrix of each packed type against one token and against many.

The cases take turns, and the median of the rounds behind the first counts: a virtual machine's neighbours, and clocks
that change, touch all of them alike. ``READ_NBYTES`` is more than the caches of most hold. All types are measured on
the same memory, because the first touch of fresh memory takes longer than all the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from time import perf_counter
from typing import Protocol

import numpy as np

from ollama_zmq.devices.base import Device, Speeds, Step
from ollama_zmq.formats.quants import QuantType, row_nbytes, type_of_id
from ollama_zmq.kernels.cpu.weights import FORMATS, CpuWeight, weight_nbytes
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import Verified, WeightSpec, verify
from ollama_zmq.wire.messages import MatrixSpeed

K = 1024
READ_NBYTES = 68 << 20
FALLBACK_NBYTES = 4 << 20  # where the budget has no room
PREFILL_ROWS, PREFILL_TOKENS = 1024, 96
CALLS, WIDTH = 64, 64  # a chain of ops that hardly compute
VALUES = 4096  # of a row whose values pass one by one
ROUNDS, ENOUGH_S = 6, 0.4  # a slow machine does what it can in this time, two rounds at least

Case = Callable[[], object]


class Measurable(Device, Protocol):
    """A device that can be measured without a model."""

    def blank_weight(self, spec: WeightSpec) -> CpuWeight:
        """Memory of a weight whose values are of no interest."""


def measure(device: Measurable) -> Speeds:
    """Measure *device*. Memory is taken from its budget and given back."""
    with ExitStack() as stack:
        nbytes = READ_NBYTES if device.budget.free > 2 * READ_NBYTES else FALLBACK_NBYTES
        memory = device.blank_weight(WeightSpec("memory", QuantType.F32.id, (nbytes // (4 * K), K)))
        stack.callback(memory.close)
        few = {index: _rows_of(kind, memory.nbytes) for index, kind in _measured_types().items()}
        cases: dict[tuple[str, int], Case] = {}
        for index, kind in _measured_types().items():
            cases["one", index] = _linear(stack, device, memory, kind, few[index], 1)
            many = min(few[index], PREFILL_ROWS)
            cases["many", index] = _linear(stack, device, memory, kind, many, PREFILL_TOKENS)
        cases["calls", 0] = _case(stack, device, _chain(WIDTH, CALLS), 1)
        cases["values", 0] = _case(stack, device, _chain(VALUES, 2), PREFILL_TOKENS)
        seconds = _medians(cases)
    matrices = tuple(
        MatrixSpeed(
            number,
            few[found.index] * row_nbytes(type_of_id(number), K) / seconds["one", found.index],
            min(few[found.index], PREFILL_ROWS) * K * PREFILL_TOKENS / seconds["many", found.index],
        )
        for number, found in FORMATS.items()
    )
    usual = next(speed for speed in matrices if speed.type == QuantType.Q8_0.id)
    return Speeds(
        usual.decode_bytes_per_s,
        usual.prefill_macs_per_s,
        matrices,
        values_per_s=2 * VALUES * PREFILL_TOKENS / seconds["values", 0],
        call_s=seconds["calls", 0] / CALLS,
    )


def _measured_types() -> dict[int, QuantType]:
    """A type for each packed format; those that are recoded when they are loaded run as another."""
    return {found.index: type_of_id(number) for number, found in reversed(FORMATS.items())}


def _rows_of(kind: QuantType, nbytes: int) -> int:
    """How many rows of K fit, in whole groups."""
    a_group = weight_nbytes(WeightSpec("w", kind.id, (16, K)))
    return nbytes // a_group * 16


def _linear(stack: ExitStack, device: Measurable, memory: CpuWeight, kind: QuantType, rows: int, T: int) -> Case:
    spec = WeightSpec("w", kind.id, (rows, K))
    ops = Builder("linear")
    out = ops.linear(ops.input("x", ("T", K)), ops.weight(spec))
    return _case(stack, device, verify(ops.program("out", out)), T, memory.seen_as(spec))


def _chain(width: int, n: int) -> Verified:
    """A program of *n* ops that each pass on *width* values."""
    ops = Builder("chain")
    x = value = ops.input("x", ("T", width))
    for i in range(n):
        value = ops.gated(value, x, function="silu") if i % 2 else ops.add(value, x)
    return verify(ops.program("out", value))


def _case(stack: ExitStack, device: Measurable, program: Verified, T: int, weight: CpuWeight | None = None) -> Case:
    executable = device.compile(program, {"w": weight} if weight else {}, kv_pages=0, max_tokens=T)
    stack.callback(executable.close)
    x, step = np.ones((T, int(program.input.shape[1])), np.float32), Step.of([T], [0])
    return lambda: executable.run(x, step)


def _medians(cases: dict[tuple[str, int], Case]) -> dict[tuple[str, int], float]:
    """Seconds of each case."""
    began, seconds = perf_counter(), {name: list[float]() for name in cases}
    for done in range(ROUNDS):
        if done > 1 and perf_counter() - began > ENOUGH_S:
            break
        for name, case in cases.items():
            start = perf_counter()
            case()
            seconds[name].append(perf_counter() - start)
    return {name: median(times[1:]) for name, times in seconds.items()}

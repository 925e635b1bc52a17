"""How fast the device is, by running what it will run: a Q8_0 weight against one token and against many."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from ollama_zmq.devices.base import Speeds, Step
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import Verified, WeightSpec, verify

if TYPE_CHECKING:
    from ollama_zmq.kernels.cpu.device import CpuDevice

K = 1024
DECODE_ROWS = 65536  # 68 MB: more than caches of one core hold, and what a small model streams per token
FALLBACK_ROWS = 1024  # where the budget has no room
PREFILL_ROWS = 2048
PREFILL_TOKENS = 96
REPEATS = 5


def measure(device: CpuDevice) -> Speeds:
    """Return the best of a few repeats. Memory is taken from the budget and given back."""
    decode, nbytes = _seconds(device, DECODE_ROWS, 1)
    prefill, _ = _seconds(device, PREFILL_ROWS, PREFILL_TOKENS)
    return Speeds(nbytes / decode, PREFILL_ROWS * K * PREFILL_TOKENS / prefill)


def _seconds(device: CpuDevice, rows: int, T: int) -> tuple[float, int]:
    """Return the seconds of one linear over T tokens, and the bytes of its weight."""
    spec = WeightSpec("weight", QuantType.Q8_0.id, (rows, K))
    if 2 * device.weight_nbytes(spec) > device.budget.free:
        spec = WeightSpec("weight", QuantType.Q8_0.id, (FALLBACK_ROWS, K))
    weight = device.blank_weight(spec)
    try:
        executable = device.compile(_linear(spec), {"weight": weight}, kv_pages=0, max_tokens=T)
        try:
            x, step = np.ones((T, K), np.float32), Step.of([T], [0])
            return min(_timed(executable.run, x, step) for _ in range(REPEATS)), weight.nbytes
        finally:
            executable.close()
    finally:
        weight.close()


def _linear(spec: WeightSpec) -> Verified:
    ops = Builder("linear")
    out = ops.linear(ops.input("x", ("T", K)), ops.weight(spec))
    return verify(ops.program("out", out))


def _timed(run: object, *args: object) -> float:
    assert callable(run)
    start = perf_counter()
    run(*args)
    return perf_counter() - start

"""A worker whose layers are sleeps: so many milliseconds for a pass and for each of its tokens, per layer.

    emulated_worker.py PORT FIXED_MS ROW_MS LAYER_MACS

LAYER_MACS, the multiply-adds of a token in a layer of Q8_0, make it say of its speed what the sleeps come to.
It speaks the protocol, holds no weights and answers noise. With it, more stages than this machine has cores can be
measured: what is left is the wire, the broker and the engine.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass

import numpy as np

from ollama_zmq.bus.worker_loop import WorkerLoop
from ollama_zmq.devices.base import Array, Budget, Device, DeviceWeight, Executable, Speeds, Step
from ollama_zmq.formats.quants import QuantType, row_nbytes
from ollama_zmq.ops.program import Verified, WeightSpec


@dataclass(slots=True)
class NoWeight(DeviceWeight):
    """A weight of which nothing is kept."""

    spec: WeightSpec
    nbytes: int = 0

    def close(self) -> None:
        """Nothing to free."""


@dataclass(slots=True)
class Sleeper(Executable):
    """A program that takes time and gives noise."""

    verified: Verified
    fixed_s: float
    row_s: float
    nbytes: int = 0

    def run(self, array: Array, step: Step) -> Array:
        """Sleep as long as the layers would take; two tokens take turns, so that no stream ends early."""
        started = time.perf_counter()
        rows, width = self.verified.output.shape
        wanted = len(step.rows) if rows == "R" else len(array)
        out = np.tile(np.random.default_rng(step.positions[0] % 2).standard_normal(int(width), np.float32), (wanted, 1))
        time.sleep(max(self.fixed_s + self.row_s * len(array) - (time.perf_counter() - started), 0.0))
        return out

    def close(self) -> None:
        """Nothing to free."""


class SleepingDevice(Device):
    """A device that takes ``fixed_s + row_s * T`` for each layer. Its sleeps are late by about 0.1 ms, as any are."""

    kind, threads = "cpu", 0  # sleeping takes no core

    def __init__(self, fixed_s: float, row_s: float, layer_macs: int) -> None:
        self.fixed_s, self.row_s, self.layer_macs = fixed_s, row_s, layer_macs
        self.name = f"sleeps of {fixed_s} + {row_s} s"
        self.budget = Budget(1 << 40)

    def check(self, verified: Verified) -> None:
        """Any program will do."""

    def weight_nbytes(self, spec: WeightSpec) -> int:
        """Weights take no memory."""
        return 0

    def executable_nbytes(
        self, verified: Verified, *, kv_pages: int, max_tokens: int, max_rows: int | None = None, threads: int = 0
    ) -> int:
        """Neither do caches."""
        return 0

    def load_weight(self, spec: WeightSpec, data: memoryview) -> DeviceWeight:
        """Forget the bytes."""
        return NoWeight(spec)

    def weight_in_parts(self, spec: WeightSpec, data: memoryview) -> Generator[None, None, DeviceWeight]:
        """There are none."""
        yield from ()
        return NoWeight(spec)

    def compile(
        self,
        verified: Verified,
        weights: Mapping[str, DeviceWeight],
        *,
        kv_pages: int,
        max_tokens: int,
        max_rows: int | None = None,
        threads: int = 0,
    ) -> Sleeper:
        """A program takes as long as its layers, each of which has a cache."""
        n_layers = len(verified.program.states)
        return Sleeper(verified, self.fixed_s * n_layers, self.row_s * n_layers)

    def measure(self) -> Speeds:
        """The same on every such worker, so that each gets as many layers."""
        one_s = self.fixed_s + self.row_s
        return Speeds(row_nbytes(QuantType.Q8_0, self.layer_macs) / one_s, self.layer_macs / self.row_s)

    def close(self) -> None:
        """Nothing to free."""


def main() -> None:
    port, fixed_ms, row_ms, layer_macs = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with whoever started this
    device = SleepingDevice(float(fixed_ms) / 1e3, float(row_ms) / 1e3, int(layer_macs))
    endpoint = f"tcp://127.0.0.1:{port}"
    loop = WorkerLoop(None, endpoint, device, name=f"127.0.0.1:{port}", find_blob=lambda blob: None, zap=True)
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    loop.run()


if __name__ == "__main__":
    main()

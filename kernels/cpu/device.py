"""The CPU device: programs planned in Python, run in one call that holds no GIL.

``OLLAMA_CPU_ISA`` picks the instruction set (generic, avx2, avx2-vnni, avx512, neon, neon-dot) for tests and
comparisons; all give the same bits.
``OLLAMA_CPU_PIN=1`` pins each thread but the caller's to a core. It is off by default: several workers may share a
host, and pinned to the same cores they would wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from weakref import WeakValueDictionary

from ollama_zmq.devices.base import Budget, DeviceWeight, Speeds, whole
from ollama_zmq.errors import OpError, RequestError, ShapeError
from ollama_zmq.kernels.cpu import simd
from ollama_zmq.kernels.cpu.executable import CpuExecutable, executable_nbytes
from ollama_zmq.kernels.cpu.plan import plan
from ollama_zmq.kernels.cpu.pool import Pool
from ollama_zmq.kernels.cpu.processor import allowed_cpus, cpu_name, default_threads
from ollama_zmq.kernels.cpu.speed import measure
from ollama_zmq.kernels.cpu.weights import CpuWeight, SlabAllocator, weight_in_parts, weight_nbytes
from ollama_zmq.ops.program import Verified, WeightSpec

MAX_THREADS = 1024
MEASURE_BYTES = 32 << 20  # what a measurement may take where the budget leaves less


class CpuDevice:
    """Threads and memory of this machine.

    Args:
        threads: as many as the process may use at once if None.
        isa: one of :func:`ollama_zmq.kernels.cpu.isa_names`; the fastest, or ``OLLAMA_CPU_ISA``, if None.

    Raises:
        RequestError: no such instruction set here, or an impossible number of threads.
    """

    kind = "cpu"

    def __init__(self, *, threads: int | None = None, budget: Budget, isa: str | None = None) -> None:
        self.threads = default_threads() if threads is None else threads
        if not 1 <= self.threads <= MAX_THREADS:
            raise RequestError(f"{self.threads} threads, expected 1 to {MAX_THREADS}")
        self.budget = budget
        self.isa = _chosen_isa(isa)
        self.name = f"{cpu_name()}, {self.isa}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        self._kernels = simd.kernels_named(self.isa)
        self.pool = Pool(self.threads, _pinned_to(self.threads))
        self._small_pools: WeakValueDictionary[int, Pool] = WeakValueDictionary()
        self._allocator = SlabAllocator(budget)
        self._open: list[CpuWeight | CpuExecutable] = []
        self._prune_at = 1
        self._closed = False

    def check(self, verified: Verified) -> None:
        """Raise :class:`~ollama_zmq.errors.UnsupportedOp` naming an op or tensor type that has no kernel here."""
        plan(verified, 1)
        for spec in verified.program.weights:
            weight_nbytes(spec)

    def weight_nbytes(self, spec: WeightSpec) -> int:
        """Return the bytes that a weight takes once loaded."""
        return weight_nbytes(spec)

    def executable_nbytes(
        self, verified: Verified, *, kv_pages: int, max_tokens: int, max_rows: int | None = None, threads: int = 0
    ) -> int:
        """Return the bytes that ``compile`` will take for KV cache and scratch."""
        planned = plan(verified, max_tokens, max_rows)
        n_threads = self._threads_of(threads)
        return executable_nbytes(planned, verified, n_threads, kv_pages=kv_pages, max_tokens=max_tokens)

    def load_weight(self, spec: WeightSpec, data: memoryview) -> CpuWeight:
        """Bring the file's bytes of one weight into 16-row groups. Raises as :class:`Device` says."""
        return whole(self.weight_in_parts(spec, data))

    def weight_in_parts(self, spec: WeightSpec, data: memoryview) -> Generator[None, None, CpuWeight]:
        """The same in parts of some MB."""
        self._check_open()
        weight = yield from weight_in_parts(spec, memoryview(data), self._allocator, self.pool)
        self._keep(weight)
        return weight

    def blank_weight(self, spec: WeightSpec) -> CpuWeight:
        """Return a weight of no meaning, in memory that the system has given: to measure with."""
        nbytes = weight_nbytes(spec)
        weight = CpuWeight(spec, nbytes, self._allocator.take(nbytes, spec.name))
        weight.touch()
        self._keep(weight)
        return weight

    def compile(
        self,
        verified: Verified,
        weights: Mapping[str, DeviceWeight],
        *,
        kv_pages: int,
        max_tokens: int,
        max_rows: int | None = None,
        threads: int = 0,
    ) -> CpuExecutable:
        """Plan memory and resolve kernels for a program. Raises as :class:`Device` says.

        Raises:
            ShapeError: a weight is missing or is not what the program declares.
            OpError: the device is closed.
        """
        self._check_open()
        n_threads = self._threads_of(threads)
        executable = CpuExecutable(
            verified,
            _matching(verified, weights),
            self._kernels,
            self._pool_of(n_threads),
            self.budget,
            threads=n_threads,
            kv_pages=kv_pages,
            max_tokens=max_tokens,
            max_rows=max_tokens if max_rows is None else max_rows,
        )
        self._keep(executable)
        return executable

    def _threads_of(self, wanted: int) -> int:
        return min(wanted, self.threads) or self.threads

    def _pool_of(self, threads: int) -> Pool:
        """Return a pool of so many threads. One that is not the device's own ends with the last program on it."""
        if threads == self.threads:
            return self.pool
        pool = self._small_pools.get(threads)
        if pool is None:
            pool = self._small_pools[threads] = Pool(threads)
        return pool

    def _check_open(self) -> None:
        if self._closed:
            raise OpError("the CPU device is closed")

    def _keep(self, item: CpuWeight | CpuExecutable) -> None:
        if len(self._open) >= self._prune_at:  # at twice as many as were open last: what is closed costs little
            self._open = [kept for kept in self._open if kept.is_open]
            self._prune_at = 2 * len(self._open) + 1
        self._open.append(item)

    def measure(self) -> Speeds:
        """Measure what it will run, in half a second. What it allocates is gone afterwards; it works in any budget."""
        scratch = CpuDevice(threads=self.threads, budget=Budget(max(self.budget.free, MEASURE_BYTES)), isa=self.isa)
        try:
            return measure(scratch)
        finally:
            scratch.close()

    def close(self) -> None:
        """Free everything. Arrays that runs returned keep their values."""
        self._closed = True
        for item in reversed(self._open):
            item.close()
        self._open.clear()
        self.pool.close()


def _chosen_isa(isa: str | None) -> str:
    known = simd.isa_names()
    name = isa or os.environ.get("OLLAMA_CPU_ISA", "") or known[0]
    if name not in known:
        raise RequestError(f"OLLAMA_CPU_ISA={name!r}: this CPU has {', '.join(known)}", isa=name)
    return name


def _pinned_to(threads: int) -> list[int]:
    cpus = allowed_cpus()
    return cpus if os.environ.get("OLLAMA_CPU_PIN") == "1" and len(cpus) == threads else []


def _matching(verified: Verified, weights: Mapping[str, DeviceWeight]) -> dict[str, CpuWeight]:
    found: dict[str, CpuWeight] = {}
    for spec in verified.program.weights:
        weight = weights.get(spec.name)
        # Two names may be of the same bytes.
        if not isinstance(weight, CpuWeight) or (weight.spec.type, weight.spec.shape) != (spec.type, spec.shape):
            given = "missing" if weight is None else f"{weight.spec}"
            raise ShapeError(f"weight {spec.name!r}: {given}, expected {spec}", weight=spec.name)
        found[spec.name] = weight
    return found

"""Carries out what a worker decides: programs become ready, steps run. One thread uses it.

A program is checked whole and its memory counted before a byte of it is loaded. Then its weights come, each as soon as
it can: from memory, from this machine's own store (a part per :meth:`Runner.load_next`, so that steps run in between),
or from the broker. With the last one the program is compiled and ready.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple

import structlog

from ollama_zmq.bus.weights import FindBlob, Identity, Weights, identity_of
from ollama_zmq.cluster.answers import MAX_THREADS
from ollama_zmq.devices.base import Array, Device, Executable, Step
from ollama_zmq.errors import OllamaZmqError, OpError, OutOfDeviceMemory, RemoteProtocolError
from ollama_zmq.ops.program import Program, Verified, WeightSpec, program_id, verify
from ollama_zmq.units import human_bytes
from ollama_zmq.wire.messages import AnyMessage, Define, Defined, Put, Ran, Ready, Run, Stored

MAX_KV_PAGES = 1 << 24
MAX_TOKENS = 1 << 16
MAX_PROGRAMS = 64  # of one broker; one of 8,000 ops takes 8 MB that no budget counts

log = structlog.get_logger()


class Reply(NamedTuple):
    """A message for the broker. ``tensors`` may be views of the device's memory, valid until its next run."""

    message: AnyMessage
    tensors: Mapping[str, Array] = MappingProxyType({})


@dataclass(slots=True)
class PendingProgram:
    """A program whose weights are not all here.

    Attributes:
        weights: name -> what it is; ``missing``: names of those that the broker must send.
        absent: those that are not in memory yet, whatever their names.
    """

    define: Define
    verified: Verified
    nbytes: int  # of its KV cache and scratch
    weights: dict[str, tuple[Identity, WeightSpec]]
    missing: set[str] = field(default_factory=set)
    absent: set[Identity] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class ReadyProgram:
    """A program that can run."""

    define: Define
    executable: Executable
    ready: Ready


class Runner:
    """The programs of one worker on one device.

    Every method returns the replies that answer it, and raises an :class:`OllamaZmqError` that concerns the program
    or the step it was called for.
    """

    def __init__(self, device: Device, find_blob: FindBlob) -> None:
        self._device = device
        self._weights = Weights(device, find_blob)
        self._loading: dict[bytes, PendingProgram] = {}
        self._loaded: dict[bytes, ReadyProgram] = {}
        self._to_load: deque[tuple[bytes, str]] = deque()

    @property
    def busy(self) -> bool:
        """Whether :meth:`load_next` has something to do."""
        return bool(self._to_load)

    @property
    def next_program(self) -> bytes:
        """The program that :meth:`load_next` will work for."""
        return self._to_load[0][0]

    def define(self, define: Define) -> list[Reply]:
        """Check a program and begin to load it: ``Defined``, and ``Ready`` when nothing has to be loaded.

        Raises:
            OpError, ShapeError: not a program, or a wrong one.
            UnsupportedOp: the device has no kernel for something.
            RemoteProtocolError: the id is not the program's, or a source is not its weight's.
            OutOfDeviceMemory: the budget does not allow weights, KV cache and scratch; nothing was loaded.
        """
        loaded = self._loaded.get(define.program)
        if loaded is not None and loaded.define == define:
            return [Reply(Defined(define.program, ())), Reply(loaded.ready)]
        self.release(define.program)  # half loaded, or the same ops over other weights
        loading = self._checked(define)
        self._check_memory(loading)
        self._loading[define.program] = loading
        for name, (identity, _) in loading.weights.items():
            self._weights.use(define.program, identity)
            if identity not in self._weights:
                loading.absent.add(identity)
                if name not in loading.missing:
                    self._to_load.append((define.program, name))
        missing = tuple(name for name in loading.weights if name in loading.missing)
        return [Reply(Defined(define.program, missing)), *self._finish()]

    def load_next(self) -> list[Reply]:
        """Load a part of a weight from this machine's own store: ``Ready`` when it was the last.

        Raises:
            ModelFileError, OutOfDeviceMemory: that program is forgotten.
        """
        program, name = self._to_load[0]
        if program in self._loading:  # else it is ready already, with weights it shares
            identity, spec = self._loading[program].weights[name]
            try:
                if not self._weights.load_part_from_store(identity, spec):
                    return []
            except OllamaZmqError:
                self.release(program)
                raise
            self._landed(identity)
        self._to_load.popleft()
        return self._finish()

    def put(self, put: Put, chunk: Array) -> list[Reply]:
        """Add a chunk to a weight: ``Stored``, and ``Ready`` when it was the last of the last weight.

        Raises:
            RemoteProtocolError: nobody asked for it, or it is not the next one.
            ModelFileError: the weight's digest is wrong; all of it must be sent again.
            OutOfDeviceMemory: there is no room for it.
        """
        loaded, loading = self._loaded.get(put.program), self._loading.get(put.program)
        if loaded is not None and any(put.weight == source.name for source in loaded.define.sources):
            # Two programs asked for a weight they share, and the other's copy came first.
            return [Reply(Stored(put.program, int(chunk.size)))]
        if loading is None or put.weight not in loading.missing:
            raise RemoteProtocolError(f"weight {put.weight[:128]!r} of program {put.program.hex()} is not asked for")
        identity, spec = loading.weights[put.weight]
        self._weights.keep(identity, spec, put, chunk)
        stored = Reply(Stored(put.program, int(chunk.size)))
        if identity not in self._weights:
            return [stored]
        self._landed(identity)
        return [stored, *self._finish()]

    def run(self, run: Run, array: Array, queued_us: int) -> list[Reply]:
        """Run a step, which the executable checks. The output is a view of its memory, valid until the next call.

        Raises:
            RemoteProtocolError: the program is not ready.
            ShapeError: the step or the input does not fit the program; nothing has been written.
        """
        loaded = self._loaded.get(run.program)
        if loaded is None:
            raise RemoteProtocolError(f"program {run.program.hex()} is not ready")
        step = Step(run.lengths, run.positions, run.pages, run.rows)
        started = perf_counter()
        output = loaded.executable.run(array, step)
        compute_us = int((perf_counter() - started) * 1e6)
        return [Reply(Ran(run.program, run.microbatch, compute_us, queued_us), {"output": output})]

    def release(self, program: bytes) -> None:
        """Forget a program, its cache and the weights that no other uses."""
        if (loaded := self._loaded.pop(program, None)) is not None:
            loaded.executable.close()
        self._loading.pop(program, None)
        self._to_load = deque(entry for entry in self._to_load if entry[0] != program)
        self._weights.release(program)

    def release_all(self) -> None:
        """Forget everything."""
        for program in [*self._loaded, *self._loading]:
            self.release(program)
        self._weights.close_files()

    def _checked(self, define: Define) -> PendingProgram:
        if program_id(define.code) != define.program:
            raise RemoteProtocolError(f"program {define.program.hex()[:64]} is not the digest of its code")
        if len(self._loaded) + len(self._loading) >= MAX_PROGRAMS:
            raise OpError(f"{MAX_PROGRAMS} programs are here already, and no more may be: release some first")
        if not 0 <= define.kv_pages <= MAX_KV_PAGES:
            raise OpError(f"kv_pages={define.kv_pages} is outside 0..{MAX_KV_PAGES}")
        if not 1 <= define.max_rows <= define.max_tokens <= MAX_TOKENS:
            raise OpError(
                f"max_rows={define.max_rows}, max_tokens={define.max_tokens}: expected 1..{MAX_TOKENS}, in order"
            )
        if not 0 <= define.threads <= MAX_THREADS:
            raise OpError(f"threads={define.threads} is outside 0..{MAX_THREADS}")
        verified = verify(Program.from_bytes(define.code))
        self._device.check(verified)
        specs = verified.program.weights
        if len(specs) != len(define.sources):
            raise RemoteProtocolError(f"{len(define.sources)} sources for {len(specs)} weights")
        pairs = zip(specs, define.sources, strict=True)
        weights = {spec.name: (identity_of(define.program, spec, source), spec) for spec, source in pairs}
        nbytes = self._device.executable_nbytes(
            verified,
            kv_pages=define.kv_pages,
            max_tokens=define.max_tokens,
            max_rows=define.max_rows,
            threads=define.threads,
        )
        loading = PendingProgram(define, verified, nbytes, weights)
        for name, (identity, _) in weights.items():
            if identity not in self._weights and not self._weights.in_store(identity):
                loading.missing.add(name)
        return loading

    def _check_memory(self, loading: PendingProgram) -> None:
        """Refuse what will not fit, counting what is promised to programs that are still loading."""
        others, budget = list(self._loading.values()), self._device.budget
        promised = self._promised(others)
        need = self._promised([*others, loading]) - promised
        need += max((loading.weights[name][0].nbytes for name in loading.missing), default=0)
        free = budget.free - promised
        if need > free:
            raise OutOfDeviceMemory(
                f"program {loading.verified.program.name!r} needs {human_bytes(need)}, "
                f"{human_bytes(max(free, 0))} of the budget of {human_bytes(budget.limit)} is free",
                need=need,
                free=free,
                budget=budget.limit,
            )

    def _promised(self, programs: list[PendingProgram]) -> int:
        specs: Mapping[Identity, WeightSpec] = {
            identity: spec for loading in programs for identity, spec in loading.weights.values()
        }
        absent = (spec for identity, spec in specs.items() if not self._weights.is_counted(identity))
        return sum(loading.nbytes for loading in programs) + sum(map(self._device.weight_nbytes, absent))

    def _landed(self, identity: Identity) -> None:
        """Note for every program that waits for it that a weight is in memory."""
        for loading in self._loading.values():
            loading.absent.discard(identity)

    def _finish(self) -> list[Reply]:
        """Compile every program whose weights are all here."""
        whole = [loading for loading in self._loading.values() if not loading.absent]
        return [Reply(self._compile(loading)) for loading in whole]

    def _compile(self, loading: PendingProgram) -> Ready:
        define = loading.define
        weights = {name: self._weights[identity] for name, (identity, _) in loading.weights.items()}
        executable = self._device.compile(
            loading.verified,
            weights,
            kv_pages=define.kv_pages,
            max_tokens=define.max_tokens,
            max_rows=define.max_rows,
            threads=define.threads,
        )
        del self._loading[define.program]
        if not self._loading:
            self._weights.close_files()
        distinct = {identity for identity, _ in loading.weights.values()}  # two names may be one weight
        nbytes = executable.nbytes + sum(self._weights[identity].nbytes for identity in distinct)
        ready = Ready(define.program, nbytes)
        self._loaded[define.program] = ReadyProgram(define, executable, ready)
        log.info(
            "program.defined",
            program=loading.verified.program.name,
            weights=len(weights),
            resident_bytes=self._device.budget.used,
        )
        return ready

"""Everything that ``ollama serve`` has below HTTP, as one object that any thread may use.

    main thread          asyncio, HTTP; calls the broker
    broker thread        CoordinatorLoop: ROUTER, coordinator, an engine per model
    local worker thread  LocalWorker: the machine's own device
    loader thread        opens a model file and resolves names, once per load

Benchmarks use it directly.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import structlog
import zmq

from ollama_zmq.bus.addresses import resolve
from ollama_zmq.bus.coordinator_loop import CoordinatorLoop, Served
from ollama_zmq.bus.local_worker import LocalWorker
from ollama_zmq.cluster.dry_run import dry_run
from ollama_zmq.cluster.events import Effect, Joined, Loaded, LoadFailed, ModelLost, Progressed, Replaced
from ollama_zmq.cluster.placement import Policy
from ollama_zmq.cluster.stages import LOCAL, NO_MODEL, LoadOrder
from ollama_zmq.cluster.state import ClusterState, DryRun
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import default_budget, open_device
from ollama_zmq.engine.embedding import Embedding
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pacing import Pacing
from ollama_zmq.engine.requests import Broken, Finished, Output, Request, Scored
from ollama_zmq.errors import OllamaZmqError, RequestError
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.kernels.cpu.processor import default_threads
from ollama_zmq.models.base import Network
from ollama_zmq.text.tokenizer import Tokenizer, load_tokenizer

log = structlog.get_logger()

T = TypeVar("T")
OnOutput = Callable[[Output], None]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load and how.

    Attributes:
        blob: "sha256-<hex>" when the file is a blob of a store; workers that hold the blob need not be sent its bytes.
        num_ctx: slots of one sequence; at most the context the model was trained for is used.
        num_batch: the most tokens of one pass.
        num_parallel: sequences at once, with room for a whole context each; 0 for as many as the KV pages hold.
        num_thread: the most threads of the local device; 0 for all it has. Workers have threads of their own.
        kv_type: what keys and values are kept as, one of ``ops.program.KV_TYPES``.
        max_in_flight: microbatches in the stages at once; 0 leaves it to the cost model.
        speculate: guess tokens that were said before where that pays.
    """

    name: str
    path: Path
    num_ctx: int
    blob: str = ""
    rpc_servers: tuple[str, ...] = ()
    num_batch: int = 512
    num_parallel: int = 1
    num_thread: int = 0
    max_in_flight: int = 0
    speculate: bool = True
    policy: Policy = Policy.THROUGHPUT
    kv_type: str = "f16"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers.

    Attributes:
        number: which load it was; never used twice by one broker.
        tokenizer: None when the file has none; token ids still work.
        size: bytes in use on all devices for it; size_remote: those of them on workers.
    """

    number: int
    request: LoadRequest
    network: Network
    tokenizer: Tokenizer | None
    num_ctx: int
    size: int
    size_remote: int
    load_s: float


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The number of a model to be loaded, and those of models that may go for it."""

    model: int
    replaces: int
    idle: tuple[int, ...] = ()
    busy: tuple[int, ...] = ()


@dataclass(slots=True)
class _Model:
    """A model that is loaded or being loaded: what was opened, and who waits for it."""

    request: LoadRequest
    gguf: GgufFile
    network: Network
    tokenizer: Tokenizer | None
    embedding: Embedding | None
    order: LoadOrder
    future: Future[LoadedModel]
    on_progress: OnProgress | None
    started: float
    loaded: LoadedModel | None = None


class Broker:
    """Loads models over the workers they are given, as many as fit, and answers requests with them.

    Args:
        threads: of the local device; None means all CPUs this process may use.
        memory_limit: bytes the local device may use; None means what is available, less a tenth.
        find_blob: "sha256-<hex>" -> path in the store of this machine, or None.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_limit: int | None = None,
        find_blob: Callable[[str], Path | None] | None = None,
    ) -> None:
        self._find_in_store = find_blob
        self._models: dict[int, _Model] = {}
        self._numbers = count(1)
        self._sinks: dict[str, tuple[int, OnOutput]] = {}
        self._joins: list[tuple[tuple[str, ...], Future[ClusterState]]] = []
        self._preparing: list[threading.Thread] = []
        self._context: zmq.Context[Any] = zmq.Context()
        self._device = open_device("cpu", threads=threads, budget=Budget(memory_limit or default_budget()))
        self._worker = LocalWorker(self._device, name=LOCAL, find_blob=self._find_blob)
        self._loop = CoordinatorLoop(
            self._context, secrets.token_hex(8), self._worker, self._on_effect, self._on_output, default_threads()
        )
        self._threads = [
            threading.Thread(target=self._worker.run, name="local-worker", daemon=True),
            threading.Thread(target=self._loop.run, name="broker", daemon=True),
        ]

    def __enter__(self) -> Broker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the broker's and the local worker's thread."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Give back every lease and stop. Requests that still run end with an error."""
        self._loop.call(self._stop)
        self._loop.stop()
        self._threads[1].join(timeout=5)
        self._worker.stop()
        self._threads[0].join(timeout=5)
        for thread in self._preparing:
            thread.join(timeout=1)
        self._device.close()
        self._context.destroy(linger=0)

    def load(
        self,
        wanted: LoadRequest,
        on_progress: OnProgress | None = None,
        *,
        replaces: LoadedModel | None = None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Future[LoadedModel]:
        """Load *wanted* beside what is loaded, once its workers have joined.

        Args:
            on_progress: called with (what, bytes done, bytes in all) from the broker's thread.
            replaces: this one goes when the new one's plan stands; its memory counts as free.
            idle, busy: those that may be asked to go first, least recently used first.

        Returns:
            A future; it fails with an :class:`OllamaZmqError` that names what is wrong: MemoryInUse when some of *idle*
            or *busy* must be unloaded before.
        """
        future: Future[LoadedModel] = Future()
        started = time.monotonic()
        numbers = _Numbers(
            next(self._numbers),
            replaces.number if replaces is not None else NO_MODEL,
            tuple(other.number for other in idle),
            tuple(other.number for other in busy),
        )

        def prepare() -> None:
            model = self._open(wanted, numbers, future, on_progress, started)
            endpoints = {address: resolve(address) for address in wanted.rpc_servers}
            self._loop.call(lambda: self._begin(model, endpoints))

        self._in_thread("loader", future, prepare)
        return future

    def plan(self, wanted: LoadRequest, *, replaces: LoadedModel | None = None) -> Future[DryRun]:
        """Return what a load of *wanted* would do, without loading anything; its workers are greeted."""
        future: Future[DryRun] = Future()

        def work() -> None:
            with open_gguf(wanted.path) as gguf:
                numbers = _Numbers(NO_MODEL, replaces.number if replaces is not None else NO_MODEL)
                order = _order(wanted, Network(gguf), numbers)
                self.check_workers(wanted.rpc_servers).result()
                found = dry_run(order, self._ask(lambda: self._loop.coordinator.survey(order)))
            future.set_result(found)

        self._in_thread("planner", future, work)
        return future

    def holds(self, model: LoadedModel) -> bool:
        """Whether *model* still answers: it was neither unloaded nor lost. From any thread."""
        return model.number in self._models

    def unload(self, model: LoadedModel) -> Future[None]:
        """Forget a model, here and on every worker."""
        future: Future[None] = Future()

        def forget() -> None:
            self._loop.apply(self._loop.coordinator.unload(model.number))
            self._forget(model.number, RequestError("the model was unloaded"))
            future.set_result(None)

        self._loop.call(forget)
        return future

    def submit(self, model: LoadedModel, request: Request, on_output: OnOutput) -> None:
        """Begin *request*; its outputs come from the broker's thread and end with Finished, Scored or Broken."""

        def begin() -> None:
            self._sinks[request.request_id] = (model.number, on_output)
            served = self._loop.models.get(model.number)
            if served is None or served.engine is None:
                self._on_output(Broken(request.request_id, _not_loaded(model)))
                return
            self._loop.deliver(served.engine.submit(request, time.monotonic()))

        self._loop.call(begin)

    def cancel(self, request_id: str) -> None:
        """End a request; what it holds is free again."""

        def end() -> None:
            if (engine := self._engine_of(request_id)) is not None:
                self._loop.deliver(engine.cancel(request_id))

        self._loop.call(end)

    def read(self, request_id: str, pieces: int) -> None:
        """Tell that *pieces* more of a request with ``read_ahead`` have been read."""

        def note() -> None:
            if (engine := self._engine_of(request_id)) is not None:
                engine.read(request_id, pieces)

        self._loop.call(note)

    def cluster(self) -> ClusterState:
        """Return what is known of the workers and stages at this moment."""
        return self._ask(self._loop.coordinator.state)

    def pacing(self, model: LoadedModel) -> Pacing:
        """Return a copy of the cost model that decides how *model* works at this moment.

        Raises:
            RequestError: it is not loaded any more.
        """

        def copied() -> Pacing:
            served = self._loop.models.get(model.number)
            if served is None or served.engine is None:
                raise _not_loaded(model)
            return deepcopy(served.engine.pacing)

        return self._ask(copied)

    def _ask(self, question: Callable[[], T]) -> T:
        """The answer to *question*, which is asked in the broker's thread."""
        future: Future[T] = Future()

        def answer() -> None:
            try:
                future.set_result(question())
            except OllamaZmqError as error:
                future.set_exception(error)

        self._loop.call(answer)
        return future.result(timeout=10)

    def check_workers(self, addresses: tuple[str, ...]) -> Future[ClusterState]:
        """Greet *addresses* without loading anything; the state tells who answered and why others did not."""
        future: Future[ClusterState] = Future()

        def prepare() -> None:
            endpoints = {address: resolve(address) for address in addresses}
            self._loop.call(lambda: join(endpoints))

        def join(endpoints: dict[str, str]) -> None:
            self._joins.append((addresses, future))
            self._loop.endpoints.update(endpoints)
            self._loop.apply(self._loop.coordinator.join(addresses, time.monotonic()))

        self._in_thread("resolver", future, prepare)
        return future

    def _in_thread(self, name: str, future: Future[Any], work: Callable[[], None]) -> None:
        """Do *work* in a thread of its own; what it raises is what *future* fails with."""

        def run() -> None:
            try:
                work()
            except OSError as error:
                future.set_exception(RequestError(f"cannot open {error.filename}: {error.strerror or error}"))
            except Exception as error:
                future.set_exception(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._preparing = [*(other for other in self._preparing if other.is_alive()), thread]
        thread.start()

    # In the loader's thread

    def _open(
        self,
        wanted: LoadRequest,
        numbers: _Numbers,
        future: Future[LoadedModel],
        on_progress: OnProgress | None,
        started: float,
    ) -> _Model:
        gguf = open_gguf(wanted.path)
        try:
            network = Network(gguf, wanted.kv_type)
            tokenizer = load_tokenizer(gguf.metadata) if "tokenizer.ggml.model" in gguf.metadata else None
            embedding = Embedding(gguf) if wanted.rpc_servers else None
        except OllamaZmqError:
            gguf.close()
            raise
        order = _order(wanted, network, numbers)
        return _Model(wanted, gguf, network, tokenizer, embedding, order, future, on_progress, started)

    # In the broker's thread

    def _begin(self, model: _Model, endpoints: dict[str, str]) -> None:
        number = model.order.model
        self._models[number], self._loop.models[number] = model, Served(model.gguf)
        self._loop.endpoints.update(endpoints)
        self._loop.apply(self._loop.coordinator.load(model.order, time.monotonic()))

    def _on_effect(self, effect: Effect) -> None:
        match effect:
            case Joined(addresses):
                self._tell_joined(addresses)
            case Replaced(number):
                self._forget(number, RequestError("the model is being loaded again with other options"))
            case Progressed(number, done, total):
                if (on_progress := self._models[number].on_progress) is not None:
                    on_progress("sending weights", done, total)
            case Loaded():
                self._finish_load(effect)
            case LoadFailed(number, error) | ModelLost(number, error):
                self._forget(number, error)

    def _engine_of(self, request_id: str) -> Engine | None:
        """The engine at work on a request; None when that is done."""
        number, _ = self._sinks.get(request_id, (NO_MODEL, None))
        served = self._loop.models.get(number)
        return served.engine if served is not None else None

    def _tell_joined(self, addresses: tuple[str, ...]) -> None:
        told = [future for asked, future in self._joins if asked == addresses]
        self._joins = [(asked, future) for asked, future in self._joins if asked != addresses]
        for future in told:
            future.set_result(self._loop.coordinator.state())

    def _finish_load(self, loaded: Loaded) -> None:
        model, served = self._models[loaded.model], self._loop.models[loaded.model]
        try:
            served.engine = self._engine(model, loaded)
        except OllamaZmqError as error:
            self._loop.apply(self._loop.coordinator.unload(loaded.model))
            self._forget(loaded.model, error)
            return
        served.embedding = None if loaded.is_whole else model.embedding
        model.loaded = LoadedModel(
            number=loaded.model,
            request=model.request,
            network=model.network,
            tokenizer=model.tokenizer,
            num_ctx=model.order.num_ctx,
            size=sum(loaded.held.values()),
            size_remote=sum(nbytes for address, nbytes in loaded.held.items() if address != LOCAL),
            load_s=time.monotonic() - model.started,
        )
        model.future.set_result(model.loaded)

    @staticmethod
    def _engine(model: _Model, loaded: Loaded) -> Engine:
        return Engine(
            tokenizer=model.tokenizer,
            vocab_size=model.network.vocab_size,
            num_ctx=model.order.num_ctx,
            kv_pages=loaded.kv_pages,
            max_tokens=model.order.max_tokens,
            max_rows=model.order.max_rows,
            max_sequences=model.order.max_sequences,
            stages=loaded.costs,
            max_in_flight=model.request.max_in_flight,
            speculate=model.request.speculate,
        )

    def _on_output(self, output: Output) -> None:
        ended = isinstance(output, Finished | Scored | Broken)
        sink = self._sinks.pop(output.request_id, None) if ended else self._sinks.get(output.request_id)
        if sink is not None:
            sink[1](output)

    def _forget(self, number: int, error: OllamaZmqError) -> None:
        """Drop a model; whoever still waits for it or for its answers is told *error*."""
        model = self._models.pop(number, None)
        self._loop.models.pop(number, None)
        if model is not None and model.loaded is None:
            model.future.set_exception(error)
        for request_id in [request_id for request_id, (user, _) in self._sinks.items() if user == number]:
            self._on_output(Broken(request_id, error))

    def _stop(self) -> None:
        stopping = RequestError("the server is stopping")
        for number in list(self._models):
            self._forget(number, stopping)
        joins, self._joins = self._joins, []
        for _, future in joins:
            future.set_exception(stopping)

    def _find_blob(self, blob: str) -> Path | None:
        """Where the local worker finds a model file: one that is being loaded, or a blob of the store."""
        paths = (model.request.path for model in list(self._models.values()) if model.order.blob == blob)
        return next(paths, None) or (self._find_in_store(blob) if self._find_in_store else None)


def _not_loaded(model: LoadedModel) -> RequestError:
    return RequestError(f"model {model.request.name!r} is not loaded any more")


def _order(wanted: LoadRequest, network: Network, numbers: _Numbers) -> LoadOrder:
    return LoadOrder(
        model=numbers.model,
        name=wanted.name,
        network=network,
        blob=wanted.blob or _file_identity(wanted.path),
        addresses=wanted.rpc_servers,
        num_ctx=min(wanted.num_ctx, network.context_length),
        num_parallel=wanted.num_parallel,
        max_tokens=wanted.num_batch,
        policy=wanted.policy,
        replaces=numbers.replaces,
        idle=numbers.idle,
        busy=numbers.busy,
        num_thread=wanted.num_thread,
    )


def _file_identity(path: Path) -> str:
    """Return an identity for a file outside any store: no other machine has it, so its bytes are sent."""
    stat = path.stat()
    return "file-" + hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()

"""Everything that ``ollama serve`` has below HTTP, as one object that any thread may use.

    main thread          asyncio, HTTP; calls the broker
    broker thread        CoordinatorLoop: ROUTER, coordinator, an engine per model
    local worker thread  LocalWorker: the machine's own device
    loader thread        opens a model file and resolves names, once per load

Benchmarks use it directly.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import zmq

from ollama_zmq.bus.addresses import resolve
from ollama_zmq.bus.coordinator_loop import CoordinatorLoop
from ollama_zmq.bus.loads import LoadedModel, LoadRequest, Numbers, order_of
from ollama_zmq.bus.local_worker import LocalWorker
from ollama_zmq.bus.served import Load, OnOutput, OnProgress, Served, ServedModels
from ollama_zmq.cluster.dry_run import dry_run
from ollama_zmq.cluster.events import Effect, Joined, LoadFailed, ModelLoaded, ModelLost, Progressed, Replaced
from ollama_zmq.cluster.stages import LOCAL, NO_MODEL
from ollama_zmq.cluster.state import ClusterState, DryRun
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import default_budget, open_device
from ollama_zmq.engine.pacing import Pacing
from ollama_zmq.engine.requests import Request, RequestFailed
from ollama_zmq.errors import OllamaZmqError, RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.kernels.cpu.processor import default_threads
from ollama_zmq.models.network import Network

T = TypeVar("T")


class Broker:
    """Loads models over the workers they are given, as many as fit, and answers requests with them.

    Args:
        threads: of the local device; None means all CPUs this process may use.
        memory_limit: bytes the local device may use; None means what is available, less a tenth.
        find_blob: "sha256-<hex>" -> path in the store of this machine, or None.
        own_ports: of this machine, at which this process listens for HTTP: no worker is there.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_limit: int | None = None,
        find_blob: Callable[[str], Path | None] | None = None,
        own_ports: frozenset[int] = frozenset(),
    ) -> None:
        self._find_in_store = find_blob
        self._models = ServedModels()
        self._numbers = count(1)
        self._joins: list[tuple[tuple[str, ...], Future[Any], Callable[[], Any]]] = []
        self._preparing: list[threading.Thread] = []
        self._context: zmq.Context[Any] = zmq.Context()
        self._device = open_device("cpu", threads=threads, budget=Budget(memory_limit or default_budget()))
        self._worker = LocalWorker(self._device, name=LOCAL, find_blob=self._find_blob)
        self._loop = CoordinatorLoop(
            self._context,
            secrets.token_hex(8),
            self._worker,
            self._models,
            self._on_effect,
            default_threads(),
            own_ports,
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
        load = Load(Future(), on_progress, time.monotonic())
        numbers = Numbers.of(next(self._numbers), replaces, idle, busy)

        def prepare() -> None:
            served = Served.open(wanted, numbers, load)
            endpoints = {address: resolve(address) for address in wanted.rpc_servers}
            self._loop.call(lambda: self._begin(served, endpoints))

        self._in_thread("loader", load.future, prepare)
        return load.future

    def plan(self, wanted: LoadRequest, *, replaces: LoadedModel | None = None) -> Future[DryRun]:
        """Return what a load of *wanted* would do, without loading anything; its workers are greeted and given back."""
        future: Future[DryRun] = Future()

        def work() -> None:
            with open_gguf(wanted.path) as gguf:
                order = order_of(wanted, Network(gguf), Numbers.of(NO_MODEL, replaces))
                snapshot = self._once_joined(
                    wanted.rpc_servers, lambda: self._loop.coordinator.snapshot(order)
                ).result()
                self._loop.call(lambda: self._loop.apply(self._loop.coordinator.leave_unused()))
                future.set_result(dry_run(order, snapshot))

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
            self._models.forget(model.number, RequestError("the model was unloaded"))
            future.set_result(None)

        self._loop.call(forget)
        return future

    def submit(self, model: LoadedModel, request: Request, on_output: OnOutput) -> None:
        """Begin *request*; its outputs come from the broker's thread and end with Finished, Scored or RequestFailed."""

        def begin() -> None:
            self._models.listen(request.request_id, model.number, on_output)
            engine = self._models.engine(model.number)
            if engine is None:
                self._models.deliver([RequestFailed(request.request_id, _not_loaded(model))])
            else:
                self._models.deliver(engine.submit(request, time.monotonic()))

        self._loop.call(begin)

    def cancel(self, request_id: str) -> None:
        """End a request; what it holds is free again."""

        def end() -> None:
            if (engine := self._models.engine_of(request_id)) is not None:
                self._models.deliver(engine.cancel(request_id))

        self._loop.call(end)

    def read(self, request_id: str, pieces: int) -> None:
        """Tell that *pieces* more of a request with ``read_ahead`` have been read."""

        def note() -> None:
            if (engine := self._models.engine_of(request_id)) is not None:
                engine.read(request_id, pieces)

        self._loop.call(note)

    def cluster(self) -> ClusterState:
        """Return what is known of the workers and stages at this moment."""
        return self._ask(self._state)

    def pacing(self, model: LoadedModel) -> Pacing:
        """Return a copy of the cost model that decides how *model* works at this moment.

        Raises:
            RequestError: it is not loaded any more.
        """

        def copied() -> Pacing:
            engine = self._models.engine(model.number)
            if engine is None:
                raise _not_loaded(model)
            return deepcopy(engine.pacing)

        return self._ask(copied)

    def _ask(self, question: Callable[[], T]) -> T:
        """The answer to *question*, which is asked in the broker's thread."""
        future: Future[T] = Future()
        self._loop.call(lambda: _answer(future, question))
        return future.result(timeout=10)

    def check_workers(self, addresses: tuple[str, ...]) -> Future[ClusterState]:
        """Greet *addresses* without loading anything; the state tells who answered and why others did not."""
        return self._once_joined(addresses, self._state)

    def _once_joined(self, addresses: tuple[str, ...], question: Callable[[], T]) -> Future[T]:
        """The answer to *question*, asked in the broker's thread once *addresses* have joined or been given up."""
        future: Future[T] = Future()

        def prepare() -> None:
            endpoints = {address: resolve(address) for address in addresses}
            self._loop.call(lambda: join(endpoints))

        def join(endpoints: dict[str, str]) -> None:
            self._joins.append((addresses, future, question))
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

    # In the broker's thread

    def _state(self) -> ClusterState:
        return self._loop.coordinator.state({number: served.use for number, served in self._models.items()})

    def _begin(self, served: Served, endpoints: dict[str, str]) -> None:
        self._models.add(served)
        self._loop.endpoints.update(endpoints)
        self._loop.apply(self._loop.coordinator.load(served.order, time.monotonic()))

    def _on_effect(self, effect: Effect) -> None:
        match effect:
            case Joined(addresses):
                self._answer_joined(addresses)
            case Replaced(number):
                self._models.forget(number, RequestError("the model is being loaded again with other options"))
            case Progressed(number, done, total):
                if (on_progress := self._models[number].load.on_progress) is not None:
                    on_progress("sending weights", done, total)
            case ModelLoaded():
                self._finish_load(effect)
            case LoadFailed(number, error) | ModelLost(number, error):
                self._models.forget(number, error)

    def _answer_joined(self, addresses: tuple[str, ...]) -> None:
        answered = [join for join in self._joins if join[0] == addresses]
        self._joins = [join for join in self._joins if join[0] != addresses]
        for _, future, question in answered:
            _answer(future, question)

    def _finish_load(self, loaded: ModelLoaded) -> None:
        try:
            self._models[loaded.model].finish(loaded)
        except OllamaZmqError as error:
            self._loop.apply(self._loop.coordinator.unload(loaded.model))
            self._models.forget(loaded.model, error)

    def _stop(self) -> None:
        stopping = RequestError("the server is stopping")
        for number in self._models:
            self._models.forget(number, stopping)
        joins, self._joins = self._joins, []
        for _, future, _ in joins:
            future.set_exception(stopping)

    # In the local worker's thread

    def _find_blob(self, blob: str) -> Path | None:
        """Where the local worker finds a model file: one that is being loaded, or a blob of the store."""
        return self._models.file(blob) or (self._find_in_store(blob) if self._find_in_store else None)


def _answer(future: Future[T], question: Callable[[], T]) -> None:
    try:
        future.set_result(question())
    except OllamaZmqError as error:
        future.set_exception(error)


def _not_loaded(model: LoadedModel) -> RequestError:
    return RequestError(f"model {model.request.name!r} is not loaded any more")

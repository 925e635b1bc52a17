"""Everything that ``ollama serve`` has below HTTP, as one object that any thread may use.

    main thread          asyncio, HTTP; calls the broker
    broker thread        CoordinatorLoop: ROUTER, coordinator, an engine per model
    local worker thread  LocalWorker: the machine's own device
    loader thread        opens a model file and resolves names, once per load

Benchmarks use it directly.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from copy import deepcopy
from functools import partial, update_wrapper
from itertools import count
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
import zmq

from ollama_zmq.bus.addresses import Resolved, resolve_all
from ollama_zmq.bus.coordinator_loop import CoordinatorLoop
from ollama_zmq.bus.futures import settle
from ollama_zmq.bus.loads import LoadedModel, LoadRequest, Numbers, order_of
from ollama_zmq.bus.local_worker import LocalWorker
from ollama_zmq.bus.look import look_at
from ollama_zmq.bus.served import Load, OnOutput, Served, ServedModels
from ollama_zmq.cluster.dry_run import dry_run
from ollama_zmq.cluster.events import (
    Effect,
    Joined,
    LoadFailed,
    ModelLoaded,
    ModelLost,
    Replaced,
    StartedOver,
)
from ollama_zmq.cluster.snapshot import ClusterSnapshot
from ollama_zmq.cluster.stages import LOCAL, NO_MODEL, LoadOrder
from ollama_zmq.cluster.state import ClusterState, DryRun
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.registry import default_budget, open_device
from ollama_zmq.engine.pacing import Pacing
from ollama_zmq.engine.requests import Request, RequestFailed
from ollama_zmq.errors import OllamaZmqError, OpError, RequestError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.kernels.cpu.processor import default_threads
from ollama_zmq.models.network import Network

T = TypeVar("T")
P = ParamSpec("P")

ASK_LIMIT_S = 10.0  # for an answer that waits for nobody else
JOIN_LIMIT_S = 600.0  # for workers to join: one after another on a host, each measures itself

log = structlog.get_logger()


def in_loop(method: Callable[Concatenate[Broker, P], T]) -> Callable[Concatenate[Broker, P], Future[T]]:
    """Make *method* run in the broker's thread, soon, whichever thread calls it: it returns a future of its result."""

    def handed_over(self: Broker, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def answer() -> None:
            try:
                settle(future, _outcome(lambda: method(self, *args, **kwargs)))
            except Exception:
                settle(future, OpError("internal error in the broker, see its log"))
                raise

        self._loop.call(answer)
        return future

    update_wrapper(handed_over, method)
    return handed_over


class Broker:
    """Loads models over the workers they are given, as many as fit, and answers requests with them.

    Args:
        threads: of the local device; None means all CPUs this process may use.
        memory_limit: bytes the local device may use; None means what is available, less a tenth.
        find_blob: "sha256-<hex>" -> path in the store of this machine, or None.
        own_ports: of this machine, at which this process listens for HTTP: no worker is there.
        load_timeout_s: a load that makes no progress for so long fails.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        memory_limit: int | None = None,
        find_blob: Callable[[str], Path | None] | None = None,
        own_ports: frozenset[int] = frozenset(),
        load_timeout_s: float = math.inf,
    ) -> None:
        self._find_in_store = find_blob
        self._models = ServedModels()
        self._numbers = count(1)
        self._joins: list[tuple[LoadOrder, Future[ClusterSnapshot]]] = []
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
            load_timeout_s,
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
        *,
        replaces: LoadedModel | None = None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Future[LoadedModel]:
        """Load *wanted* beside what is loaded, once its workers have joined.

        Args:
            replaces: this one goes when the new one's plan stands; its memory counts as free.
            idle, busy: those that may be asked to go first, least recently used first.

        Returns:
            A future; it fails with an :class:`OllamaZmqError` that names what is wrong: MemoryInUse when some of *idle*
            or *busy* must be unloaded before. To cancel it drops the load.
        """
        load = Load(Future(), time.monotonic())
        numbers = Numbers.of(next(self._numbers), replaces, idle, busy)

        def prepare() -> None:
            served = Served.open(wanted, numbers, load)
            resolved = resolve_all(wanted.rpc_servers)
            self._begin(served, resolved)

        load.future.add_done_callback(lambda future: self._drop(numbers.model) if future.cancelled() else None)
        self._in_thread("loader", load.future, prepare)
        return load.future

    def plan(
        self,
        wanted: LoadRequest,
        *,
        replaces: LoadedModel | None = None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Future[DryRun]:
        """Return what a :meth:`load` would do. Nothing is loaded; workers say what they have and are given back."""
        future: Future[DryRun] = Future()
        numbers = Numbers.of(NO_MODEL, replaces, idle, busy)

        def work() -> None:
            with open_gguf(wanted.path) as gguf:
                order = order_of(wanted, Network(gguf, num_ctx=wanted.num_ctx), numbers)
                joined = _waited(self._once_joined(order, resolve_all(wanted.rpc_servers)), ASK_LIMIT_S)
                settle(future, dry_run(order, _waited(joined, JOIN_LIMIT_S)))

        self._in_thread("planner", future, work)
        return future

    def holds(self, model: LoadedModel) -> bool:
        """Whether *model* still answers: it was neither unloaded nor lost. From any thread."""
        return model.number in self._models

    @in_loop
    def unload(self, model: LoadedModel) -> None:
        """Forget a model, here and on every worker."""
        self._forget(model.number, RequestError("the model was unloaded"))

    @in_loop
    def submit(self, model: LoadedModel, request: Request, on_output: OnOutput) -> None:
        """Begin *request*; its outputs come from the broker's thread, the last a Finished, Scored or RequestFailed."""
        self._models.listen(request.request_id, model.number, on_output)
        engine = self._models.engine(model.number)
        if engine is None:
            self._models.deliver([RequestFailed(request.request_id, _not_loaded(model))])
        else:
            self._models.deliver(engine.submit(request))

    @in_loop
    def cancel(self, request_id: str) -> None:
        """End a request; what it holds is free again."""
        if (engine := self._models.engine_of(request_id)) is not None:
            self._models.deliver(engine.cancel(request_id))

    @in_loop
    def read(self, request_id: str, pieces: int) -> None:
        """Tell that *pieces* more of a request with ``read_ahead`` have been read."""
        if (engine := self._models.engine_of(request_id)) is not None:
            engine.read(request_id, pieces)

    def look(self, listed: Sequence[str]) -> Future[None]:
        """Look whether the workers of a list are there, and log who is not. Nobody is connected or leased."""
        future: Future[None] = Future()

        def work() -> None:
            found = look_at(resolve_all(listed))
            for address, why in found.items():
                if why:
                    log.warning("worker.absent", worker=address, reason=why)
            settle(future, _waited(self._looked(found), ASK_LIMIT_S))

        self._in_thread("look", future, work)
        return future

    @in_loop
    def _looked(self, found: Mapping[str, str]) -> None:
        self._loop.coordinator.links.looked(found)

    def cluster(self, listed: Sequence[str] = ()) -> ClusterState:
        """Return what is known of workers and stages at this moment. Nobody is connected or asked.

        Args:
            listed: workers that may take part; they are shown, with what is wrong with their names, if anything is.
        """
        resolved = resolve_all(listed)
        return _waited(self._state(resolved), ASK_LIMIT_S)

    def pacing(self, model: LoadedModel) -> Pacing:
        """Return a copy of the cost model that decides how *model* works at this moment.

        Raises:
            RequestError: it is not loaded any more.
        """
        return _waited(self._pacing(model), ASK_LIMIT_S)

    @in_loop
    def _pacing(self, model: LoadedModel) -> Pacing:
        engine = self._models.engine(model.number)
        if engine is None:
            raise _not_loaded(model)
        return deepcopy(engine.pacing)

    @in_loop
    def _state(self, resolved: Mapping[str, Resolved]) -> ClusterState:
        uses = {number: served.use for number, served in self._models.items()}
        self._loop.know(resolved)
        return self._loop.coordinator.state(uses, {address: where.why for address, where in resolved.items()})

    @in_loop
    def _drop(self, model: int) -> None:
        """Forget a load that nobody waits for any more."""
        self._forget(model, RequestError("nobody waits for the model any more"))

    @in_loop
    def _begin(self, served: Served, resolved: Mapping[str, Resolved]) -> None:
        if served.load.future.cancelled():
            return
        self._models.add(served)
        self._loop.know(resolved)
        self._loop.apply(self._loop.coordinator.load(served.order, time.monotonic()))

    @in_loop
    def _once_joined(self, order: LoadOrder, resolved: Mapping[str, Resolved]) -> Future[ClusterSnapshot]:
        """A future of what the workers of *order* have once they have joined or been given up; they are left then."""
        future: Future[ClusterSnapshot] = Future()
        self._joins.append((order, future))
        self._loop.know(resolved)
        self._loop.apply(self._loop.coordinator.join(order.addresses, time.monotonic(), order.foreign))
        return future

    def _in_thread(self, name: str, future: Future[Any], work: Callable[[], None]) -> None:
        """Do *work* in a thread of its own; what it raises is what *future* fails with."""

        def run() -> None:
            try:
                work()
            except Exception as error:
                settle(future, error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._preparing = [*(other for other in self._preparing if other.is_alive()), thread]
        thread.start()

    # In the broker's thread

    def _on_effect(self, effect: Effect) -> None:
        match effect:
            case Joined(addresses):
                self._answer_joined(addresses)
            case Replaced(number):
                self._models.forget(number, RequestError("the model is being loaded again with other options"))
            case ModelLoaded():
                self._finish_load(effect)
            case LoadFailed(number, error) | ModelLost(number, error):
                self._models.forget(number, error)
            case StartedOver(error):
                self._end_joins(error)

    def _answer_joined(self, addresses: tuple[str, ...]) -> None:
        joined = [join for join in self._joins if join[0].addresses == addresses]
        self._joins = [join for join in self._joins if join[0].addresses != addresses]
        for order, future in joined:
            settle(future, _outcome(partial(self._loop.coordinator.snapshot, order.model, order.addresses)))
        self._loop.apply(self._loop.coordinator.leave_unused())

    def _finish_load(self, loaded: ModelLoaded) -> None:
        try:
            if loaded.missing:
                log.warning("workers.missing", model=self._models[loaded.model].request.name, missing=loaded.missing)
            self._models[loaded.model].finish(loaded)
        except OllamaZmqError as error:
            self._forget(loaded.model, error)

    def _forget(self, number: int, error: OllamaZmqError) -> None:
        """Drop a model here and on every worker; whoever still waits for it is told *error*."""
        self._loop.apply(self._loop.coordinator.unload(number))
        self._models.forget(number, error)

    def _stop(self) -> None:
        stopping = RequestError("the server is stopping")
        for number in self._models:
            self._models.forget(number, stopping)
        self._end_joins(stopping)

    def _end_joins(self, error: OllamaZmqError) -> None:
        """Tell *error* to whoever waits for workers."""
        joins, self._joins = self._joins, []
        for _, future in joins:
            settle(future, error)

    # In the local worker's thread

    def _find_blob(self, blob: str) -> Path | None:
        """Where the local worker finds a model file: one that is being loaded, or a blob of the store."""
        return self._models.file(blob) or (self._find_in_store(blob) if self._find_in_store else None)


def _outcome(question: Callable[[], T]) -> T | Exception:
    """The answer to *question*, or why there is none."""
    try:
        return question()
    except OllamaZmqError as error:
        return error


def _waited(future: Future[T], limit_s: float) -> T:
    """The result of *future*.

    Raises:
        OpError: there is none within *limit_s*.
    """
    try:
        return future.result(limit_s)
    except TimeoutError:
        future.cancel()
        raise OpError(f"the broker did not answer within {limit_s:g} s: is this machine very busy?") from None


def _not_loaded(model: LoadedModel) -> RequestError:
    return RequestError(f"model {model.request.name!r} is not loaded any more")

"""Which models are loaded, for whom, and for how long.

A request that a loaded model can serve takes it at once. Any other waits for the load lock; models load one
after another, while the loaded ones go on.

    same file, other runner options or workers  the one that is loaded goes when its users are done, then it is loaded
    there is memory, and not ``max_loaded``     it is loaded beside the others
    there is not                                idle models are evicted, least recently used first; while that is not
                                                enough, models in use drain and go, too
    a model that is about to go                 who asks for it waits behind those for whom it goes, so that nobody
                                                waits for ever

    used by nobody      the timer of its keep_alive runs; when it ends, the model is unloaded
    keep_alive          of the last request that had one, else the server's; 0 unloads after the last user, inf never
    more than max_queue waiting requests are refused

What goes so that another model fits is the coordinator's decision, for it knows the memory of every worker; who is idle
is known here. All methods run on the event loop. Of the broker's futures only that of a load is ever canceled, which
drops the load: when the last client that waited for it has left.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from ollama_zmq.errors import MemoryInUse, OllamaZmqError, ServerBusy
from ollama_zmq.server.resident import Resident, Timer
from ollama_zmq.store.stored_model import StoredModel

if TYPE_CHECKING:
    from ollama_zmq.bus.loads import LoadedModel, LoadRequest

log = structlog.get_logger()
T = TypeVar("T")


class Loader(Protocol):
    """The part of the broker that is needed here."""

    def load(
        self,
        load_spec: LoadRequest,
        *,
        replaces: LoadedModel | None = None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Future[LoadedModel]:
        """Load it in the place of *replaces*; MemoryInUse names those of *idle* and *busy* that must go first.

        To cancel the future drops the load.
        """

    def unload(self, model: LoadedModel) -> Future[None]:
        """Forget it."""

    def holds(self, model: LoadedModel) -> bool:
        """Whether it is loaded still."""


class ModelScheduler:
    """Lends loaded models to requests, and loads others when they want them.

    Args:
        keep_alive_s: for requests that do not say.
        max_queue: requests that may wait.
        max_loaded: models; 0 for as many as fit.
        clock: seconds since the epoch.
        call_later: runs a function after some seconds; the event loop's by default.
    """

    def __init__(
        self,
        broker: Loader,
        *,
        keep_alive_s: float = 300.0,
        max_queue: int = 512,
        max_loaded: int = 0,
        clock: Callable[[], float] = time.time,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self._broker = broker
        self._keep_alive_s = keep_alive_s
        self._max_queue = max_queue
        self._max_loaded = max_loaded
        self._clock = clock
        self._call_later = call_later
        self._residents: dict[Path, Resident] = {}
        self._load_lock = asyncio.Lock()
        self._waiting: Counter[LoadRequest] = Counter()
        self._someone_left = asyncio.Event()
        self._uses = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def residents(self) -> list[Resident]:
        """The models that are loaded, the one that expires last first."""
        held = [resident for resident in self._residents.values() if self._broker.holds(resident.loaded)]
        return sorted(held, key=lambda resident: -resident.expires_at)

    def loaded_from(self, path: Path) -> LoadedModel | None:
        """The model of the file *path*, if it is loaded."""
        return next((resident.loaded for resident in self.residents if resident.loaded.request.path == path), None)

    def could_go_for(self, path: Path) -> tuple[list[LoadedModel], list[LoadedModel]]:
        """The models of other files than *path*, idle and busy ones, each least recently used first."""
        others = self._others(path)
        return [other.loaded for other in others if not other.users], [other.loaded for other in others if other.users]

    @asynccontextmanager
    async def use(
        self, model: StoredModel, load_spec: LoadRequest, keep_alive_s: float | None = None
    ) -> AsyncIterator[Resident]:
        """Borrow *load_spec*, loaded if need be; ``keep_alive_s`` None leaves the model's own.

        Raises:
            ServerBusy: too many requests wait already.
            OllamaZmqError: it cannot be loaded.
        """
        resident = await self._acquire(model, load_spec)
        self._uses += 1
        resident.last_used = self._uses
        resident.enter(keep_alive_s, self._clock())
        try:
            yield resident
        finally:
            if resident.leave() and self._is_here(resident):
                self._start_timer(resident)

    async def expire(self, path: Path) -> None:
        """Unload the model of the file *path* if it is loaded: at once, or when its last user is done."""
        resident = self._residents.get(path)
        if resident is None:
            return
        resident.keep_alive_s, resident.expires_at = 0.0, self._clock()
        if resident.users == 0:
            await self._unload(resident)

    def close(self) -> None:
        """Stop the timers and what runs in the background; the broker is closed by its owner."""
        for resident in self._residents.values():
            resident.stop_timer()
        for task in self._tasks:
            task.cancel()

    async def _acquire(self, model: StoredModel, load_spec: LoadRequest) -> Resident:
        if (resident := self._fitting(load_spec)) and not resident.draining:
            if resident.users - resident.loaded.contexts >= self._max_queue:
                raise _busy()
            return resident
        if self._waiting.total() >= max(1, self._max_queue):
            raise _busy()
        self._waiting[load_spec] += 1
        try:
            async with self._load_lock:
                if resident := self._fitting(load_spec):
                    resident.draining = False  # for whom it was to go has given up
                    return resident
                return await self._load_locked(model, load_spec)
        finally:
            self._waiting[load_spec] -= 1
            self._waiting += Counter()  # without those that are zero
            self._someone_left.set()

    def _fitting(self, load_spec: LoadRequest) -> Resident | None:
        """The loaded model of *load_spec*'s file, if it was loaded as *load_spec* asks, under whatever name."""
        resident = self._residents.get(load_spec.path)
        if resident is None or not self._broker.holds(resident.loaded):
            return None
        same = replace(load_spec, name=resident.loaded.request.name) == resident.loaded.request
        return resident if same else None

    # Loading, by whoever holds the load lock

    async def _load_locked(self, model: StoredModel, load_spec: LoadRequest) -> Resident:
        while self._max_loaded and len(others := self._others(load_spec.path)) >= self._max_loaded:
            await self._evict(others[0])
        while True:
            if (before := self._residents.get(load_spec.path)) is not None:
                await self._until_unused(before)
            try:
                return await self._load(model, load_spec)
            except MemoryInUse as error:
                in_the_way = [
                    other for other in self._others(load_spec.path) if _number(other) in error.facts["models"]
                ]
                if not in_the_way:
                    raise
                await self._evict(in_the_way[0])

    def _others(self, path: Path) -> list[Resident]:
        """The models of other files, idle ones first, then the least recently used."""
        others = [resident for resident in self.residents if resident.loaded.request.path != path]
        return sorted(others, key=lambda resident: (resident.users > 0, resident.last_used))

    async def _evict(self, resident: Resident) -> None:
        """Unload *resident* when its users are done."""
        await self._until_unused(resident)
        await self._unload(resident)

    async def _until_unused(self, resident: Resident) -> None:
        """Wait until nobody uses *resident*, and let nobody new begin."""
        resident.draining = True
        try:
            await resident.unused.wait()
        except asyncio.CancelledError:
            resident.draining = False
            raise

    async def _load(self, model: StoredModel, load_spec: LoadRequest) -> Resident:
        """Load in a task of its own: a client that leaves stops it only when nobody else waits for the same."""
        loading = asyncio.ensure_future(self._replace(model, load_spec))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            await self._while_wanted(loading, load_spec)
            if not loading.cancelled() and loading.exception() is None:
                self._start_timer(loading.result())
            raise

    async def _while_wanted(self, loading: asyncio.Future[Resident], load_spec: LoadRequest) -> None:
        """Wait for *loading*, whose own client has left; drop it when nobody else waits for it any more."""
        while not loading.done():
            if self._waiting[load_spec] <= 1:
                loading.cancel()
                await asyncio.wait((loading,))
                return
            self._someone_left.clear()
            leaving = asyncio.ensure_future(self._someone_left.wait())
            await asyncio.wait((loading, leaving), return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()

    async def _replace(self, model: StoredModel, load_spec: LoadRequest) -> Resident:
        before = self._residents.pop(load_spec.path, None)
        if before is not None:
            before.stop_timer()
        idle, busy = self.could_go_for(load_spec.path)
        future = self._broker.load(load_spec, replaces=before.loaded if before else None, idle=idle, busy=busy)
        try:
            loaded = await _dropped_or_ended(future)
        except (OllamaZmqError, asyncio.CancelledError):
            if before is not None and self._broker.holds(before.loaded):  # it failed before the old one was dropped
                self._residents[load_spec.path], before.draining = before, False
                self._start_timer(before)
            raise
        resident = self._residents[load_spec.path] = Resident(model, loaded, self._keep_alive_s)
        resident.touch(self._clock())
        resident.unused.set()
        log.info("model.loaded", model=load_spec.name, load_ms=round(loaded.load_s * 1e3), num_ctx=loaded.num_ctx)
        return resident

    # Unloading

    def _is_here(self, resident: Resident) -> bool:
        return self._residents.get(resident.loaded.request.path) is resident

    def _start_timer(self, resident: Resident) -> None:
        resident.touch(self._clock())
        call_later = self._call_later or asyncio.get_running_loop().call_later
        resident.start_timer(call_later, lambda: self._spawn_unload(resident))

    def _spawn_unload(self, resident: Resident) -> None:
        task = asyncio.get_running_loop().create_task(self._unload(resident))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unload(self, resident: Resident) -> None:
        """Unload *resident* unless somebody took it, or its place, meanwhile."""
        if resident.users > 0 or not self._is_here(resident):
            return
        resident.stop_timer()
        del self._residents[resident.loaded.request.path]
        await _result(self._broker.unload(resident.loaded))
        log.info("model.unloaded", model=resident.loaded.request.name)


def _number(resident: Resident) -> int:
    return resident.loaded.number


async def _result(future: Future[T]) -> T:
    """Wait for the broker; a caller that is cancelled leaves the broker's future alone."""
    return await asyncio.shield(asyncio.wrap_future(future))


async def _dropped_or_ended(load: Future[T]) -> T:
    """Wait for *load*; a caller that is cancelled drops it, or has its end if it has ended meanwhile."""
    try:
        return await _result(load)
    except asyncio.CancelledError:
        if load.cancel():
            raise
        return await _result(load)


def _busy() -> ServerBusy:
    return ServerBusy("server busy, please try again.  maximum pending requests exceeded")

"""Which model is loaded, for whom, and for how long.

One model is loaded at a time. A request that the loaded model can serve takes it at once, unless somebody waits for
another model: then it queues behind, so that nobody waits for ever. A request for another model, or for the same one
with other runner options or workers, waits until the running ones are done and replaces it.

    used by nobody      the timer of its keep_alive runs; when it ends, the model is unloaded
    keep_alive          of the last request that had one, else the server's; 0 unloads after the last user, inf never
    more than max_queue waiting requests are refused

All methods run on the event loop; the broker's futures are only ever waited for, never cancelled.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import structlog

from ollama_zmq.errors import OllamaZmqError, ServerBusy
from ollama_zmq.store.stored_model import StoredModel
from ollama_zmq.text.templates import ChatTemplate, chat_template

if TYPE_CHECKING:
    from ollama_zmq.bus.broker import LoadedModel, LoadRequest

log = structlog.get_logger()
T = TypeVar("T")

FOREVER_S = 290 * 365.0 * 86400  # what Ollama's largest duration comes to


class Timer(Protocol):
    """What ``loop.call_later`` returns."""

    def cancel(self) -> None:
        """Do not fire."""


class Loader(Protocol):
    """The part of the broker that is needed here."""

    def load(self, wanted: LoadRequest, *, replaces: LoadedModel | None = None) -> Future[LoadedModel]:
        """Load it in the place of *replaces*."""

    def unload(self, model: LoadedModel) -> Future[None]:
        """Forget it."""

    def holds(self, model: LoadedModel) -> bool:
        """Whether it is loaded still."""


@dataclass(slots=True)
class Resident:
    """The model in memory.

    Attributes:
        model: as it was in the store when it was loaded.
        users: requests that run on it.
        expires_at: when it will be unloaded if nobody comes, in seconds since the epoch.
    """

    model: StoredModel
    loaded: LoadedModel
    keep_alive_s: float
    expires_at: float
    users: int = 0
    timer: Timer | None = None
    templates: dict[str | None, ChatTemplate] = field(default_factory=dict)

    def template(self, go_template: str | None) -> ChatTemplate:
        """The chat template of this file, or *go_template* in its place; compiled once."""
        if go_template not in self.templates:
            metadata = self.loaded.network.gguf.metadata
            self.templates[go_template] = chat_template(metadata, go_template, tokenizer=self.loaded.tokenizer)
        return self.templates[go_template]


class Scheduler:
    """Lends the loaded model to requests, and loads another when they want one.

    Args:
        keep_alive_s: for requests that do not say.
        max_queue: requests that may wait.
        clock: seconds since the epoch.
        call_later: runs a function after some seconds; the event loop's by default.
    """

    def __init__(
        self,
        broker: Loader,
        *,
        keep_alive_s: float = 300.0,
        max_queue: int = 512,
        clock: Callable[[], float] = time.time,
        call_later: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self.resident: Resident | None = None
        self._broker = broker
        self._keep_alive_s = keep_alive_s
        self._max_queue = max_queue
        self._clock = clock
        self._call_later = call_later
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is loaded and nothing is being loaded or unloaded."""
        return self.resident is None and not self._turn.locked()

    @asynccontextmanager
    async def use(
        self, model: StoredModel, wanted: LoadRequest, keep_alive_s: float | None = None
    ) -> AsyncIterator[Resident]:
        """Borrow *wanted*, loaded if need be; ``keep_alive_s`` None leaves the model's own.

        Raises:
            ServerBusy: too many requests wait already.
            OllamaZmqError: it cannot be loaded.
        """
        resident = await self._acquire(model, wanted)
        self._enter(resident, keep_alive_s)
        try:
            yield resident
        finally:
            self._leave(resident)

    async def expire(self, path: Path) -> None:
        """Unload the model of the file *path* if it is loaded: at once, or when its last user is done."""
        resident = self.resident
        if resident is None or resident.loaded.request.path != path:
            return
        resident.keep_alive_s, resident.expires_at = 0.0, self._clock()
        if resident.users == 0:
            await self._unload(resident)

    def close(self) -> None:
        """Stop the timer and what runs in the background; the broker is closed by its owner."""
        self._stop_timer()
        for task in self._tasks:
            task.cancel()

    async def _acquire(self, model: StoredModel, wanted: LoadRequest) -> Resident:
        if self._waiting == 0 and (resident := self._fitting(wanted)):
            if resident.users - wanted.num_parallel >= self._max_queue:
                raise _busy()
            return resident
        if self._waiting >= max(1, self._max_queue):
            raise _busy()
        self._waiting += 1
        try:
            async with self._turn:
                if resident := self._fitting(wanted):
                    return resident
                await self._unused.wait()
                return await self._load(model, wanted)
        finally:
            self._waiting -= 1

    def _fitting(self, wanted: LoadRequest) -> Resident | None:
        """The resident model if it is what *wanted* asks for, under whatever name."""
        resident = self.resident
        if resident is None or not self._broker.holds(resident.loaded):
            return None
        same = replace(wanted, name=resident.loaded.request.name) == resident.loaded.request
        return resident if same else None

    async def _load(self, model: StoredModel, wanted: LoadRequest) -> Resident:
        """Load in a task of its own: a client that leaves meanwhile does not stop it, and keeps its turn till then."""
        loading = asyncio.ensure_future(self._replace(model, wanted))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            await asyncio.wait((loading,))
            if not loading.cancelled() and loading.exception() is None:
                self._start_timer(loading.result())
            raise

    async def _replace(self, model: StoredModel, wanted: LoadRequest) -> Resident:
        self._stop_timer()
        before, self.resident = self.resident, None
        try:
            loaded = await _result(self._broker.load(wanted, replaces=before.loaded if before else None))
        except OllamaZmqError:
            if before is not None and self._broker.holds(before.loaded):  # it failed before the old one was dropped
                self.resident = before
                self._start_timer(before)
            raise
        expires_at = self._clock() + min(self._keep_alive_s, FOREVER_S)
        self.resident = Resident(model, loaded, self._keep_alive_s, expires_at)
        log.info("model.loaded", model=wanted.name, load_ms=round(loaded.load_s * 1e3), num_ctx=loaded.num_ctx)
        return self.resident

    def _enter(self, resident: Resident, keep_alive_s: float | None) -> None:
        self._stop_timer()
        resident.users += 1
        self._unused.clear()
        if keep_alive_s is not None:
            resident.keep_alive_s = keep_alive_s
        resident.expires_at = self._clock() + min(resident.keep_alive_s, FOREVER_S)

    def _leave(self, resident: Resident) -> None:
        resident.users -= 1
        if resident.users == 0 and resident is self.resident:
            self._unused.set()
            self._start_timer(resident)

    def _start_timer(self, resident: Resident) -> None:
        resident.expires_at = self._clock() + min(resident.keep_alive_s, FOREVER_S)
        if math.isfinite(resident.keep_alive_s):
            call_later = self._call_later or asyncio.get_running_loop().call_later
            resident.timer = call_later(resident.keep_alive_s, lambda: self._spawn_unload(resident))

    def _stop_timer(self) -> None:
        if self.resident is not None and self.resident.timer is not None:
            self.resident.timer.cancel()
            self.resident.timer = None

    def _spawn_unload(self, resident: Resident) -> None:
        task = asyncio.get_running_loop().create_task(self._unload(resident))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unload(self, resident: Resident) -> None:
        """Unload *resident* unless somebody took it, or its place, meanwhile."""
        async with self._turn:
            if resident is not self.resident or resident.users > 0:
                return
            self._stop_timer()
            self.resident = None
            await _result(self._broker.unload(resident.loaded))
            log.info("model.unloaded", model=resident.loaded.request.name)


async def _result(future: Future[T]) -> T:
    """Wait for the broker; a caller that is cancelled leaves the broker's future alone."""
    return await asyncio.shield(asyncio.wrap_future(future))


def _busy() -> ServerBusy:
    return ServerBusy("server busy, please try again.  maximum pending requests exceeded")

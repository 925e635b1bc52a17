"""Threads of their own for what templates and tokenizers do, so that no other route waits behind them.

They are daemons: a template that still runs does not keep the process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ollama_zmq.errors import ServerBusy

Result = TypeVar("Result")

N_THREADS = 2
MAX_WAITING = 2_048  # more than the requests that may wait for a model (OLLAMA_MAX_QUEUE, 512) and those it answers


class Renderers:
    """A few daemon threads, begun when there is work, and a bounded number of those who wait for them."""

    def __init__(self, n_threads: int = N_THREADS, max_waiting: int = MAX_WAITING) -> None:
        self._n_threads = n_threads
        self._waiting: queue.Queue[Callable[[], None]] = queue.Queue(max_waiting)
        self._threads: list[threading.Thread] = []

    async def run(self, work: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """What *work* returns, computed in one of the threads; never begun when the caller has left by then.

        Raises:
            ServerBusy: too many wait already.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def settle(result: Result | None, error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def job() -> None:
            if done.cancelled():
                return
            outcome: tuple[Result | None, BaseException | None]
            try:
                outcome = work(*args, **kwargs), None
            except BaseException as error:  # it is the caller's
                outcome = None, error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, *outcome)

        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise ServerBusy(
                f"{self._waiting.maxsize} requests wait for their prompts already: try again later"
            ) from None
        if len(self._threads) < self._n_threads:
            thread = threading.Thread(target=self._work, name=f"render-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return await done

    def _work(self) -> None:
        while True:
            self._waiting.get()()

"""Prompts are made in threads of their own: bounded, and no reason to stay."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from ollama_zmq.errors import ServerBusy
from ollama_zmq.server.rendering import Renderers


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    return lambda: asyncio.run(test())


@in_a_loop
async def test_what_is_computed_or_raised_reaches_the_caller():
    renderers = Renderers()
    assert await renderers.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await renderers.run(divmod, 7, 0)


@in_a_loop
async def test_the_threads_let_the_process_end_and_are_not_the_ones_of_other_routes():
    thread = await Renderers().run(threading.current_thread)
    assert thread.daemon
    assert thread is not await asyncio.to_thread(threading.current_thread)


@in_a_loop
async def test_only_so_many_wait_and_who_left_is_passed_over():
    renderers, begun, go_on, computed = Renderers(1, 1), threading.Event(), threading.Event(), []

    def hold() -> None:
        begun.set()
        go_on.wait(30)

    running = asyncio.ensure_future(renderers.run(hold))
    await asyncio.to_thread(begun.wait, 30)
    waiting = asyncio.ensure_future(renderers.run(computed.append, "left"))
    await asyncio.sleep(0)
    with pytest.raises(ServerBusy, match="try again later"):
        await renderers.run(computed.append, "too many")
    waiting.cancel()
    await asyncio.sleep(0)
    go_on.set()
    await running
    while not computed:  # until the thread has passed over the one that left
        with suppress(ServerBusy):
            await renderers.run(computed.append, "next")
        await asyncio.sleep(0)
    assert computed == ["next"]

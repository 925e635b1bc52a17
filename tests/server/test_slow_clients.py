"""A client that does not read costs a buffer of known size, and the others nothing. One that leaves costs nothing."""

import asyncio

import pytest

from ollama_zmq.server.generation import READ_AHEAD
from tests.server.caller import Caller
from tests.server.engine_broker import settle, with_engine


def asks(prompt="Hi", **options):
    """A client of ``/api/generate`` whose answer is long."""
    options = {"num_predict": 700, "seed": 1, "repeat_penalty": 1.0, "temperature": 0.8} | options
    return Caller("/api/generate", model="tiny", prompt=prompt, raw=True, options=options)


async def begin(broker, here, caller):
    """Let *caller* ask; returns when its request has reached the engine."""
    n_submitted = len(broker.submitted)
    task = asyncio.create_task(caller.call(here))
    while len(broker.submitted) == n_submitted:
        await asyncio.sleep(0)
    return task


def test_what_a_client_does_not_read_is_bounded_and_comes_when_it_reads(store):
    async def scenario(broker, here):
        slow, other = asks(seed=3), asks(seed=3)
        slow.reads.clear()
        slow_task = await begin(broker, here, slow)
        await broker.run()
        [slow_id] = broker.said
        assert broker.said[slow_id] == READ_AHEAD
        assert broker.engine.free_pages == broker.driver.kv_pages

        other_task = await begin(broker, here, other)
        await broker.run()
        await other_task
        assert broker.said[slow_id] == READ_AHEAD
        assert other.body_sent.endswith(b"}\n")

        slow.reads.set()
        while not slow_task.done():
            await settle()
            await broker.run()
        assert broker.said[slow_id] > 2 * READ_AHEAD
        assert slow.text == other.text

    with_engine(store, scenario, max_sequences=1)


def test_a_client_that_leaves_while_its_request_is_paused_is_forgotten(store):
    async def scenario(broker, here):
        slow = asks(seed=3)
        slow.reads.clear()
        task = await begin(broker, here, slow)
        await broker.run()
        assert broker.engine.waiting == 1
        slow.gone.set()
        await task
        assert (broker.engine.running, broker.engine.waiting) == (0, 0)

    with_engine(store, scenario)


@pytest.mark.parametrize("in_flight", [0, 1, 3])
def test_the_pages_of_a_client_that_vanishes_during_its_prefill_are_free_when_what_is_in_flight_has_landed(
    store, in_flight
):
    async def scenario(broker, here):
        caller = asks("a long prompt " * 12)
        task = await begin(broker, here, caller)
        broker.driver.send()
        broker.land()
        for _ in range(in_flight):
            broker.driver.send()
        assert broker.engine.free_pages < broker.driver.kv_pages
        caller.gone.set()
        await task
        for _ in range(in_flight):
            assert broker.driver.send() is None
            broker.land()
        assert (broker.engine.running, broker.engine.free_pages) == (0, broker.driver.kv_pages)
        assert caller.sent == []

    with_engine(store, scenario, max_tokens=16, max_in_flight=3)

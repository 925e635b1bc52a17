"""Streams end when the client does."""

import asyncio
import gc
import threading

import msgspec
import pytest

from ollama_zmq.server.schema.times import rfc3339
from ollama_zmq.server.streaming import Statuses, encode
from tests.server.caller import Caller
from tests.server.conftest import site
from tests.server.fake_broker import hello


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request_and_gives_the_model_back(broker, store, stream):
    async def main():
        async with site(broker, store) as here:
            broker.script = lambda request: hello(request)[:1]
            caller = Caller("/api/generate", model="tiny", prompt="Hi", stream=stream)
            answering = asyncio.create_task(caller.call(here))
            if stream:
                await caller.got_piece.wait()
            else:
                while not broker.submitted:
                    await asyncio.sleep(0)
            caller.gone.set()
            await answering
            assert broker.canceled == [broker.submitted[0].request_id]
            assert [resident.users for resident in here.services.scheduler.residents] == [0]

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_client_that_leaves_while_it_waits_for_a_load_is_forgotten(broker, store):
    async def main():
        async with site(broker, store) as here:
            broker.holds_loads = True
            caller = Caller("/api/chat", model="tiny", messages=[{"role": "user", "content": "Hi"}])
            answering = asyncio.create_task(caller.call(here))
            while not broker.loads:
                await asyncio.sleep(0)
            caller.gone.set()
            await asyncio.sleep(0)
            broker.finish_load()
            await answering
            assert (broker.submitted, caller.sent) == ([], [])

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_finished_request_is_not_cancelled(broker, store):
    async def main():
        async with site(broker, store) as here:
            await here.lines("/api/generate", model="tiny", prompt="Hi")
            assert broker.canceled == []

    asyncio.run(main())


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_moments_are_written_as_go_writes_them(nanoseconds, text):
    assert rfc3339(nanoseconds) == text


def test_an_error_of_work_whose_reader_has_left_is_nobodys_complaint():
    complaints, goes_on = [], threading.Event()

    def work(tell):
        tell("begun")
        goes_on.wait()
        raise ZeroDivisionError

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        lines = Statuses(work).lines()
        assert await anext(lines) == "begun"
        await lines.aclose()
        goes_on.set()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
        gc.collect()

    asyncio.run(scenario())
    assert complaints == []


def test_half_a_surrogate_pair_goes_out_as_a_replacement_character():
    class Named(msgspec.Struct):
        name: str

    assert encode([Named("a\udc80b"), {"\ud83d": ["😀"]}]) == '[{"name":"a\ufffdb"},{"\ufffd":["😀"]}]'.encode()
    assert encode(["\ud83d\ude00"]) == '["😀"]'.encode()

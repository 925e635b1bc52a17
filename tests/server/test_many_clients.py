"""Thousands of clients at once: those beyond the queue are told so at once, and the others are answered."""

import asyncio
import json

import pytest

from ollama_zmq.cluster.contexts import CONTEXTS
from tests.server.caller import Caller
from tests.server.conftest import site
from tests.server.fake_broker import hello

BUSY = {"error": "server busy, please try again.  maximum pending requests exceeded"}
QUEUE = 512


@pytest.mark.parametrize("n", [2_000, pytest.param(10_000, marks=pytest.mark.full)])
def test_of_many_clients_those_beyond_the_queue_are_refused_and_the_others_are_answered(broker, store, n):
    broker.script = None

    async def main():
        async with site(broker, store) as here:
            await here.post("/api/generate", model="tiny")
            callers = [Caller("/api/generate", model="tiny", prompt="Hi") for _ in range(n)]
            answers = [asyncio.create_task(caller.call(here)) for caller in callers]
            while sum(task.done() for task in answers) < n - QUEUE - CONTEXTS:
                await asyncio.sleep(0)
            assert len(broker.submitted) <= QUEUE + CONTEXTS
            refused = [caller for caller in callers if caller.sent]
            assert {caller.status for caller in refused} == {503}
            assert all(json.loads(caller.body_sent) == BUSY for caller in refused)
            while len(broker.submitted) < QUEUE + CONTEXTS:
                await asyncio.sleep(0)
            for request in broker.submitted:
                for output in hello(request):
                    broker.say(output)
            await asyncio.gather(*answers)
            admitted = [caller for caller in callers if caller.status == 200]
            assert [caller.text for caller in admitted] == ["Hello there!"] * (QUEUE + CONTEXTS)
            assert [resident.users for resident in here.services.scheduler.residents] == [0]

    asyncio.run(asyncio.wait_for(main(), 120))

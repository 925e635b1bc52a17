"""Thousands of clients at once: those beyond the queue are told so at once, and the others are answered."""

import asyncio
import json
from itertools import count

import pytest

from tests.server.caller import Caller
from tests.server.conftest import site
from tests.server.fake_broker import hello

BUSY = {"error": "server busy, please try again.  maximum pending requests exceeded"}
QUEUE = 512


@pytest.mark.parametrize("n", [2_000, pytest.param(10_000, marks=pytest.mark.full)])
def test_of_many_clients_those_beyond_the_queue_are_refused_and_the_others_are_answered(broker, store, n):
    n_admitted = QUEUE + broker.contexts

    async def main():
        all_submitted, all_refused, n_refused = asyncio.Event(), asyncio.Event(), count(1)

        def keep(request):
            if len(broker.submitted) == n_admitted:
                all_submitted.set()
            return []

        def ended(task):
            if next(n_refused) == n - n_admitted:
                all_refused.set()

        broker.script = keep
        async with site(broker, store) as here:
            await here.post("/api/generate", model="tiny")
            callers = [Caller("/api/generate", model="tiny", prompt="Hi") for _ in range(n)]
            answers = [asyncio.create_task(caller.call(here)) for caller in callers]
            for task in answers:
                task.add_done_callback(ended)
            await all_refused.wait()
            assert len(broker.submitted) <= n_admitted
            refused = [caller for caller in callers if caller.sent]
            assert {caller.status for caller in refused} == {503}
            assert all(json.loads(caller.body_sent) == BUSY for caller in refused)
            await all_submitted.wait()
            for request in broker.submitted:
                for output in hello(request):
                    broker.say(output)
            await asyncio.gather(*answers)
            admitted = [caller for caller in callers if caller.status == 200]
            assert [caller.text for caller in admitted] == ["Hello there!"] * n_admitted
            assert [resident.users for resident in here.services.scheduler.residents] == [0]

    asyncio.run(asyncio.wait_for(main(), 60))

"""A broker whose requests an engine answers, over a model that is a few numbers; a test moves it step by step."""

from __future__ import annotations

import asyncio

import numpy as np

from ollama_zmq.engine.requests import TextChunk
from tests.engine.fakes import END, Driver, FakeModel, logits_of
from tests.server.conftest import site
from tests.server.fake_broker import FakeBroker

KV_PAGES = 64


def endless(values):
    """Logits of a text that goes on as long as it may."""
    logits = logits_of(values)
    logits[END] = -np.inf
    return logits


class EngineBroker(FakeBroker):
    """``said``: how many pieces each request has been answered with."""

    def __init__(self, **sizes):
        super().__init__()
        self.driver = Driver(**sizes, model=FakeModel(KV_PAGES, endless), kv_pages=KV_PAGES)
        self.said = {}

    @property
    def engine(self):
        return self.driver.engine

    def submit(self, model, request, on_output):
        self.submitted.append(request)
        self._sinks[request.request_id] = on_output
        self.said[request.request_id] = 0
        self.driver.submit(request)
        self._deliver()

    def cancel(self, request_id):
        self.canceled.append(request_id)
        self.driver.cancel(request_id)
        self._deliver()

    def read(self, request_id, pieces):
        self.engine.read(request_id, pieces)

    def land(self):
        """Bring back a microbatch, and tell what it said."""
        self.driver.land()
        self._deliver()

    async def run(self):
        """Go on until the engine has nothing to do and every client has got what it reads."""
        while self.driver.send() is not None:
            self.land()
            await settle()

    def _deliver(self):
        for output in self.driver.outputs:
            self.said[output.request_id] += isinstance(output, TextChunk)
            self._sinks[output.request_id](output)
        self.driver.outputs.clear()


async def settle():
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


def with_engine(store, scenario, **sizes):
    """Run *scenario* with a broker whose engine has *sizes*, and the site over it."""

    async def main():
        broker = EngineBroker(**sizes)
        async with site(broker, store) as here:
            await asyncio.wait_for(scenario(broker, here), timeout=60)

    asyncio.run(main())

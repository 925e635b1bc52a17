"""Streams end when the client does, and never hold more than a buffer."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.engine.requests import Finished, Piece
from ollama_zmq.server.generation import OutputBuffer
from ollama_zmq.server.schema import rfc3339
from tests.server.conftest import site
from tests.server.fake_broker import hello


class Caller:
    """A client that speaks ASGI by hand, so that it can leave when it wants."""

    def __init__(self, path, **body):
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "scheme": "http",
            "server": ("localhost", 80),
        }
        self.body = json.dumps(body).encode()
        self.sent = []
        self.got_piece, self.gone = asyncio.Event(), asyncio.Event()
        self._asked = False

    async def receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        if message.get("more_body"):
            self.got_piece.set()


def app_of(here):
    return here.http._transport.app


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_cancels_its_request_and_gives_the_model_back(broker, store, stream):
    async def main():
        async with site(broker, store) as here:
            broker.script = lambda request: hello(request)[:1]
            caller = Caller("/api/generate", model="tiny", prompt="Hi", stream=stream)
            answering = asyncio.create_task(app_of(here)(caller.scope, caller.receive, caller.send))
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
            answering = asyncio.create_task(app_of(here)(caller.scope, caller.receive, caller.send))
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


@given(st.lists(st.text(max_size=3), max_size=30), st.integers(1, 5))
def test_a_full_buffer_joins_pieces_and_loses_nothing(texts, limit):
    async def main():
        buffer = OutputBuffer(limit)
        for i, text in enumerate(texts):
            buffer.add(Piece("r", text, (i,)))
        assert len(buffer) <= limit
        buffer.add(Finished("r", "stop", (), 0, 0, 0.0, 0.0))
        outputs = [await buffer.get() for _ in range(len(buffer))]
        pieces = outputs[:-1]
        assert "".join(piece.text for piece in pieces) == "".join(texts)
        assert [token_id for piece in pieces for token_id in piece.token_ids] == list(range(len(texts)))
        assert isinstance(outputs[-1], Finished)

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

"""Answers that come piece by piece, and clients that leave before the end.

A :class:`Chunked` answer runs its iterator and listens for the client at the same time. When the client leaves, the
iterator is cancelled wherever it waits, in a queue or in the middle of a prompt, and its ``finally`` tells the broker.
An error before the first chunk is an answer with its own status; after it, the last line is ``{"error": "..."}``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ollama_zmq.printable import whole_characters
from ollama_zmq.server.errors import Family, body_of, status_of

Chunk = TypeVar("Chunk", bound=msgspec.Struct)

NDJSON = "application/x-ndjson"
JSON = "application/json; charset=utf-8"


def encode(value: object) -> bytes:
    """*value* as JSON; half a surrogate pair, which no UTF-8 has, is U+FFFD."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_readable(msgspec.to_builtins(value)))


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, dict):
        return {_readable(key): _readable(item) for key, item in value.items()}
    return [_readable(item) for item in value] if isinstance(value, list | tuple) else value


def json_response(value: object, status: int = 200) -> Response:
    """*value* as JSON."""
    return Response(encode(value), status, media_type=JSON)


def error_response(error: Exception, family: Family | None = None) -> Response:
    """*error* with its status, in the shape of *family*, or of Ollama's own API."""
    body, status = body_of(error), status_of(error)
    return json_response(family(status, body.error) if family else body, status)


class Chunked(Response, Generic[Chunk]):
    """The chunks of an iterator: one line each, or merged into one object when ``merge`` is given."""

    def __init__(
        self, chunks: AsyncGenerator[Chunk, None], merge: Callable[[list[Chunk]], Chunk] | None = None
    ) -> None:
        self._chunks = chunks
        self._merge = merge
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer, or stop when the client leaves."""
        async with aclosing(self._chunks):
            await _until_gone(receive, self._answer(scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            first = await anext(self._chunks)
            if self._merge is not None:
                response = json_response(self._merge([first] + [chunk async for chunk in self._chunks]))
        except Exception as error:
            response = error_response(error)
        else:
            if self._merge is None:
                await self._stream(first, send)
                return
        await response(scope, receive, send)

    async def _stream(self, first: Chunk, send: Send) -> None:
        headers = [(b"content-type", NDJSON.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await _send_line(first, send)
        try:
            async for chunk in self._chunks:
                await _send_line(chunk, send)
        except Exception as error:
            await _send_line(body_of(error), send)
        await send({"type": "http.response.body", "body": b""})


async def _send_line(value: msgspec.Struct, send: Send) -> None:
    """Send *value* as one line; returns when the client's window has room for it."""
    await send({"type": "http.response.body", "body": encode(value) + b"\n", "more_body": True})


async def _until_gone(receive: Receive, answer: Coroutine[Any, Any, None]) -> None:
    """Run *answer* to its end, or cancel it as soon as the client is gone."""
    answering = asyncio.ensure_future(answer)
    listening = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((answering, listening), return_when=asyncio.FIRST_COMPLETED)
    finally:
        listening.cancel()
        if not answering.done():
            answering.cancel()
        results = await asyncio.gather(answering, listening, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Statuses:
    """Lines that a function tells from its own thread, as an async iterator; ends when the function does."""

    def __init__(self, work: Callable[[Callable[[str], None]], object]) -> None:
        self._work = work

    async def lines(self) -> AsyncGenerator[str, None]:
        """What the function tells, in order; its error is raised at the end."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[str | None] = asyncio.Queue()

        def emit(line: str | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, line)

        def work() -> None:
            try:
                self._work(emit)
            finally:
                emit(None)

        running = asyncio.ensure_future(asyncio.to_thread(work))
        running.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if the reader leaves
        while (line := await queue.get()) is not None:
            yield line
        await running

"""From the broker's thread to an async iterator, one request at a time.

A request may be ``READ_AHEAD`` pieces ahead of its reader; then the engine pauses it until the broker hears that pieces
have been read, ``READ_AHEAD / 4`` at a time. So a client that does not read costs a buffer of known size, and one that
reads costs the broker's thread one call in 64 pieces.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from ollama_zmq.engine.requests import Finished, GenerationRequest, Output, RequestFailed, Scored, TextChunk
from ollama_zmq.errors import OllamaZmqError

if TYPE_CHECKING:
    from ollama_zmq.bus.loads import LoadedModel

READ_AHEAD = 256


class Submitter(Protocol):
    """The part of the broker that is needed here."""

    def submit(self, model: LoadedModel, request: GenerationRequest, on_output: OnOutput, /) -> object:
        """Begin; outputs come from another thread."""

    def cancel(self, request_id: str) -> object:
        """Stop."""

    def read(self, request_id: str, pieces: int) -> object:
        """Note that *pieces* more have been read."""


class OnOutput(Protocol):
    """Called once per output."""

    def __call__(self, output: Output, /) -> None:
        """Take *output*."""


class OutputBuffer:
    """Outputs of one request between two threads. Only :meth:`put` may be called off the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outputs: deque[Output] = deque()
        self._ready = asyncio.Event()

    def put(self, output: Output) -> None:
        """Add *output*, from any thread; after the loop has ended it is dropped."""
        try:
            self._loop.call_soon_threadsafe(self.add, output)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def add(self, output: Output) -> None:
        """Add *output*, on the loop."""
        self._outputs.append(output)
        self._ready.set()

    async def get(self) -> Output:
        """The next output."""
        while not self._outputs:
            self._ready.clear()
            await self._ready.wait()
        return self._outputs.popleft()


class Generations:
    """The requests that run on the broker for clients of this server."""

    def __init__(self, broker: Submitter) -> None:
        self._broker = broker
        self._running: dict[str, OutputBuffer] = {}
        self._stopped: OllamaZmqError | None = None

    async def outputs(
        self, model: LoadedModel, request: GenerationRequest
    ) -> AsyncGenerator[TextChunk | Finished, None]:
        """Outputs of *request* on *model*, ending with Finished. Leaving early cancels it.

        Raises:
            OllamaZmqError: it broke.
        """
        if self._stopped is not None:
            raise self._stopped
        buffer = self._running[request.request_id] = OutputBuffer()
        ended, read = False, 0
        try:
            self._broker.submit(model, replace(request, read_ahead=READ_AHEAD), buffer.put)
            while not ended:
                output = await buffer.get()
                ended = not isinstance(output, TextChunk)
                if isinstance(output, RequestFailed):
                    raise output.error
                assert not isinstance(output, Scored)  # nothing here asks for logits
                yield output
                read += 1
                if read == READ_AHEAD // 4 and not ended:
                    self._broker.read(request.request_id, read)
                    read = 0
        finally:
            del self._running[request.request_id]
            if not ended:
                self._broker.cancel(request.request_id)

    def stop(self, error: OllamaZmqError) -> None:
        """End all that run with *error*, and refuse new ones."""
        self._stopped = error
        for request_id, buffer in self._running.items():
            buffer.add(RequestFailed(request_id, error))
            self._broker.cancel(request_id)

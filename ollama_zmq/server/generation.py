"""From the broker's thread to an async iterator, one request at a time.

Pieces wait in a buffer that holds at most ``BUFFER_PIECES``: when a client reads more slowly than the model writes,
the newest pieces are joined, so that nothing is lost and nothing grows but one text, which ends with the generation.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Protocol

from ollama_zmq.engine.requests import Broken, Finished, GenerationRequest, Output, Piece, Scored
from ollama_zmq.errors import OllamaZmqError

if TYPE_CHECKING:
    from ollama_zmq.bus.broker import LoadedModel

BUFFER_PIECES = 256


class Submitter(Protocol):
    """The part of the broker that is needed here."""

    def submit(self, model: LoadedModel, request: GenerationRequest, on_output: OnOutput, /) -> None:
        """Begin; outputs come from another thread."""

    def cancel(self, request_id: str) -> None:
        """Stop."""


class OnOutput(Protocol):
    """Called once per output."""

    def __call__(self, output: Output, /) -> None:
        """Take *output*."""


class OutputBuffer:
    """Outputs of one request between two threads. Only :meth:`put` may be called off the event loop."""

    def __init__(self, limit: int = BUFFER_PIECES) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
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
        if self._outputs and len(self._outputs) >= self._limit:
            last = self._outputs[-1]
            if isinstance(last, Piece) and isinstance(output, Piece):
                self._outputs[-1] = joined(last, output)
                return
        self._outputs.append(output)
        self._ready.set()

    async def get(self) -> Output:
        """The next output."""
        while not self._outputs:
            self._ready.clear()
            await self._ready.wait()
        return self._outputs.popleft()

    def __len__(self) -> int:
        return len(self._outputs)


def joined(first: Piece, second: Piece) -> Piece:
    """Two pieces of the same request as one."""
    return Piece(
        first.request_id,
        first.text + second.text,
        first.token_ids + second.token_ids,
        first.logprobs + second.logprobs,
    )


class Generations:
    """The requests that run on the broker for clients of this server."""

    def __init__(self, broker: Submitter) -> None:
        self._broker = broker
        self._running: dict[str, OutputBuffer] = {}
        self._stopped: OllamaZmqError | None = None

    async def outputs(self, model: LoadedModel, request: GenerationRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Outputs of *request* on *model*, ending with Finished. Leaving early cancels it.

        Raises:
            OllamaZmqError: it broke.
        """
        if self._stopped is not None:
            raise self._stopped
        buffer = self._running[request.request_id] = OutputBuffer()
        ended = False
        try:
            self._broker.submit(model, request, buffer.put)
            while not ended:
                output = await buffer.get()
                ended = not isinstance(output, Piece)
                if isinstance(output, Broken):
                    raise output.error
                assert not isinstance(output, Scored)  # nothing here asks for logits
                yield output
        finally:
            del self._running[request.request_id]
            if not ended:
                self._broker.cancel(request.request_id)

    def stop(self, error: OllamaZmqError) -> None:
        """End all that run with *error*, and refuse new ones."""
        self._stopped = error
        for request_id, buffer in self._running.items():
            buffer.add(Broken(request_id, error))
            self._broker.cancel(request_id)

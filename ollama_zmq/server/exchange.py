"""The way of an inference request from its body to its answer, the same for every route.

    check -> prepare -> load -> prompt -> tokens -> generate -> chunks, or all of them merged

A request with nothing to answer loads the model, and with ``keep_alive`` 0 unloads it. What a route says and means by
its fields is an :class:`Exchange`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Generic

from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.server.inference import (
    PreparedRequest,
    logprobs_of,
    metrics,
    outputs,
    prepare,
    resident_of,
    tokenizer_of,
)
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import Inference
from ollama_zmq.server.services import Services
from ollama_zmq.server.streaming import Chunk, Chunked, json_response
from ollama_zmq.text.tokenizer import Tokenizer


class Exchange(ABC, Generic[Chunk]):
    """One request of a route, and the form of its answer.

    Attributes:
        go_template: what the request brings in place of the model's own; "" for none.
    """

    request: Inference
    go_template: str = ""

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether there is nothing to answer."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what can be seen to be wrong before the model is looked up. Raises RequestError."""

    @abstractmethod
    def needs(self) -> Sequence[str]:
        """The capabilities that the request takes, besides thinking."""

    @abstractmethod
    def prompt(self, prepared: PreparedRequest, resident: Resident, tokenizer: Tokenizer) -> str:
        """The text that the model continues."""

    @abstractmethod
    def token_ids(self, prepared: PreparedRequest, tokenizer: Tokenizer, prompt: str, num_ctx: int) -> tuple[int, ...]:
        """The tokens of *prompt* for a context of *num_ctx*."""

    @abstractmethod
    def rendered(self, tokenizer: Tokenizer, prompt: str) -> Chunk:
        """The answer to ``_debug_render_only``."""

    @abstractmethod
    def chunk(self, text: str = "", **fields: Any) -> Chunk:
        """A chunk with *text* and other fields of the answer."""

    @abstractmethod
    def finished(self, output: Finished) -> dict[str, Any]:
        """What the last chunk has besides counts and durations."""

    @abstractmethod
    def merged(self, chunks: list[Chunk]) -> Chunk:
        """All chunks as one: the last one with everybody's text and log-probabilities."""


async def respond(services: Services, exchange: Exchange[Chunk]) -> Response:
    """The answer to *exchange*, in chunks or in one piece.

    Raises:
        OllamaZmqError: the request is refused before anything is loaded.
    """
    request, is_empty = exchange.request, exchange.is_empty
    exchange.check()
    prepared = await prepare(services, request, go_template=exchange.go_template, needs=exchange.needs())
    if is_empty and prepared.unloads:
        await services.scheduler.expire(prepared.load_spec.path)
        return json_response(exchange.chunk(done=True, done_reason="unload"))
    in_one_piece = not request.stream or is_empty or request.debug_render_only
    return Chunked(_chunks(services, prepared, exchange), exchange.merged if in_one_piece else None)


async def _chunks(
    services: Services, prepared: PreparedRequest, exchange: Exchange[Chunk]
) -> AsyncGenerator[Chunk, None]:
    async with resident_of(services, prepared) as resident:
        ready_ns = time.monotonic_ns()
        if exchange.is_empty:
            yield exchange.chunk(done=True, done_reason="load")
            return
        tokenizer = tokenizer_of(prepared, resident.loaded.tokenizer)
        prompt = await services.renderers.run(exchange.prompt, prepared, resident, tokenizer)
        if exchange.request.debug_render_only:
            yield exchange.rendered(tokenizer, prompt)
            return
        token_ids = await services.renderers.run(
            exchange.token_ids, prepared, tokenizer, prompt, resident.loaded.num_ctx
        )
        async with aclosing(outputs(services, prepared, resident.loaded, token_ids)) as answer:
            async for output in answer:
                if isinstance(output, Finished):
                    fields = exchange.finished(output) | metrics(prepared, ready_ns, output)
                    yield exchange.chunk(done=True, done_reason=output.reason, **fields)
                else:
                    yield exchange.chunk(output.text, logprobs=logprobs_of(output))

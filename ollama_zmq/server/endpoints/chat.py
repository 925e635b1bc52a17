"""``POST /api/chat``: the next message of a conversation. No messages load it, with ``keep_alive`` 0 unload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import RequestError
from ollama_zmq.server.inference import Call, checked, encoded, logprobs_of, metrics, outputs, tokenizer_of
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema import ChatRequest, ChatResponse, DebugInfo, Message, ReceivedMessage, now
from ollama_zmq.server.services import Services, body_as, services_of
from ollama_zmq.server.streaming import Chunked, json_response
from ollama_zmq.text import templates
from ollama_zmq.text.prompts import conversation, newest_that_fit
from ollama_zmq.text.tokenizer import Tokenizer


async def chat(request: Request) -> Response:
    """Answer a conversation, in chunks or in one piece."""
    services, asked = services_of(request), await body_as(request, ChatRequest)
    if not asked.model:
        raise RequestError("model is required")
    if any(message.images for message in asked.messages):
        raise RequestError(f'"{asked.model}" does not support images: this version reads text only')
    call = await checked(services, asked, None, ["completion", *(["tools"] if asked.tools else [])])
    if not asked.messages and call.unloads:
        await services.scheduler.expire(call.wanted.path)
        return json_response(_chunk(asked, done=True, done_reason="unload"))
    in_one_piece = not asked.stream or not asked.messages or asked.debug_render_only
    return Chunked(_chunks(services, call, asked), _merged if in_one_piece else None)


async def _chunks(services: Services, call: Call, asked: ChatRequest) -> AsyncGenerator[ChatResponse, None]:
    async with services.scheduler.use(call.model, call.wanted, call.keep_alive_s) as resident:
        ready_ns = time.monotonic_ns()
        if not asked.messages:
            yield _chunk(asked, done=True, done_reason="load")
            return
        tokenizer = tokenizer_of(call, resident.loaded.tokenizer)
        prompt = await asyncio.to_thread(_prompt, call, asked, resident, tokenizer)
        if asked.debug_render_only:
            yield _chunk(asked, debug_info=DebugInfo(prompt))
            return
        token_ids = await asyncio.to_thread(encoded, tokenizer, prompt)
        async with aclosing(outputs(services, call, resident.loaded, token_ids)) as answer:
            async for output in answer:
                if isinstance(output, Finished):
                    yield _chunk(asked, done=True, done_reason=output.reason, **metrics(call, ready_ns, output))
                else:
                    yield _chunk(asked, output.text, logprobs=logprobs_of(output))


def _prompt(call: Call, asked: ChatRequest, resident: Resident, tokenizer: Tokenizer) -> str:
    """The conversation as the model was trained to read it, without the oldest messages if they do not fit."""
    template = resident.template(call.model.template)
    messages = conversation(
        [_as_template_wants(message) for message in asked.messages],
        system=call.model.system or "",
        examples=[{"role": example.role, "content": example.content} for example in call.model.messages],
    )

    def render(kept: Sequence[templates.Message]) -> str:
        return template.render(kept, tools=asked.tools or None, think=asked.think)

    if asked.truncate:
        messages = newest_that_fit(
            messages, lambda kept: len(encoded(tokenizer, render(kept))), resident.loaded.num_ctx
        )
    return render(messages)


def _as_template_wants(message: ReceivedMessage) -> templates.Message:
    fields: dict[str, object] = msgspec.to_builtins(message)
    kept = {name: value for name, value in fields.items() if value or name == "content"}
    return kept | {"role": message.role.lower()}


def _chunk(asked: ChatRequest, text: str = "", *, done: bool = False, **fields: Any) -> ChatResponse:
    message = Message(role="assistant", content=text)
    return msgspec.structs.replace(
        ChatResponse(model=asked.model, created_at=now(), message=message, done=done), **fields
    )


def _merged(chunks: list[ChatResponse]) -> ChatResponse:
    """All chunks as one: the last one with everybody's text."""
    return msgspec.structs.replace(
        chunks[-1],
        message=Message(role="assistant", content="".join(chunk.message.content for chunk in chunks)),
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
    )

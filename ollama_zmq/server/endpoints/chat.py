"""``POST /api/chat``: the next message of a conversation. No messages load it, with ``keep_alive`` 0 unload."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import RequestError
from ollama_zmq.server.inference import PreparedRequest, encoded, logprobs_of, metrics, outputs, prepare, tokenizer_of
from ollama_zmq.server.names import required_name
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import ChatRequest, ChatResponse, DebugInfo, ReceivedMessage, ResponseMessage
from ollama_zmq.server.schema.times import now
from ollama_zmq.server.services import Services, body_as, services_of
from ollama_zmq.server.streaming import Chunked, json_response
from ollama_zmq.text import templates
from ollama_zmq.text.prompts import conversation, literal, newest_that_fit
from ollama_zmq.text.tokenizer import Tokenizer


async def chat(http: Request) -> Response:
    """Answer a conversation, in chunks or in one piece."""
    services, request = services_of(http), await body_as(http, ChatRequest)
    required_name(request.model)
    if any(message.images for message in request.messages):
        raise RequestError(f'"{request.model}" does not support images: this version reads text only')
    prepared = await prepare(services, request, needs=["completion", *(["tools"] if request.tools else [])])
    if not request.messages and prepared.unloads:
        await services.scheduler.expire(prepared.load_spec.path)
        return json_response(_chunk(request, done=True, done_reason="unload"))
    in_one_piece = not request.stream or not request.messages or request.debug_render_only
    return Chunked(_chunks(services, prepared, request), _merged if in_one_piece else None)


async def _chunks(
    services: Services, prepared: PreparedRequest, request: ChatRequest
) -> AsyncGenerator[ChatResponse, None]:
    async with services.scheduler.use(prepared.model, prepared.load_spec, prepared.keep_alive_s) as resident:
        ready_ns = time.monotonic_ns()
        if not request.messages:
            yield _chunk(request, done=True, done_reason="load")
            return
        tokenizer = tokenizer_of(prepared, resident.loaded.tokenizer)
        prompt = await services.renderers.run(_prompt, prepared, request, resident, tokenizer)
        if request.debug_render_only:
            yield _chunk(request, message=ResponseMessage("", ""), debug_info=DebugInfo(tokenizer.shown(prompt)))
            return
        token_ids = await services.renderers.run(
            encoded, tokenizer, prompt, resident.loaded.num_ctx, may_cut=request.truncate and request.shift
        )
        async with aclosing(outputs(services, prepared, resident.loaded, token_ids)) as answer:
            async for output in answer:
                if isinstance(output, Finished):
                    yield _chunk(request, done=True, done_reason=output.reason, **metrics(prepared, ready_ns, output))
                else:
                    yield _chunk(request, output.text, logprobs=logprobs_of(output))


def _prompt(prepared: PreparedRequest, request: ChatRequest, resident: Resident, tokenizer: Tokenizer) -> str:
    """The conversation as the model was trained to read it, without the oldest messages if they do not fit."""
    template = resident.template(prepared.model.template)
    requested, tools = [_as_template_wants(message) for message in request.messages], request.tools
    if not prepared.options.parse_special:
        requested, tools = literal(requested, tokenizer.literal), literal(tools, tokenizer.literal)
    messages = conversation(
        requested,
        system=prepared.model.system or "",
        examples=[{"role": example.role, "content": example.content} for example in prepared.model.messages],
    )

    def render(kept: Sequence[templates.Message]) -> str:
        return template.render(kept, tools=tools or None, think=request.think)

    if request.truncate:
        num_ctx = resident.loaded.num_ctx
        messages = newest_that_fit(messages, lambda kept: len(encoded(tokenizer, render(kept), num_ctx)), num_ctx)
    return render(messages)


def _as_template_wants(message: ReceivedMessage) -> templates.Message:
    fields: dict[str, object] = msgspec.to_builtins(message)
    kept = {name: value for name, value in fields.items() if value or name == "content"}
    return kept | {"role": message.role.lower()}


def _chunk(request: ChatRequest, text: str = "", *, done: bool = False, **fields: Any) -> ChatResponse:
    message = ResponseMessage(role="assistant", content=text)
    return msgspec.structs.replace(
        ChatResponse(model=request.model, created_at=now(), message=message, done=done), **fields
    )


def _merged(chunks: list[ChatResponse]) -> ChatResponse:
    """All chunks as one: the last one with everybody's text."""
    return msgspec.structs.replace(
        chunks[-1],
        message=ResponseMessage(role="assistant", content="".join(chunk.message.content for chunk in chunks)),
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
    )

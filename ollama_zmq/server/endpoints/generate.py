"""``POST /api/generate``: continue a prompt. An empty prompt loads the model, with ``keep_alive`` 0 it unloads it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import RequestError
from ollama_zmq.server.inference import Call, checked, encoded, logprobs_of, metrics, outputs, tokenizer_of
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema import DebugInfo, GenerateRequest, GenerateResponse, now
from ollama_zmq.server.services import Services, body_as, services_of
from ollama_zmq.server.streaming import Chunked, json_response
from ollama_zmq.text.prompts import render_generate
from ollama_zmq.text.tokenizer import Tokenizer


async def generate(request: Request) -> Response:
    """Continue a prompt, in chunks or in one piece."""
    services, asked = services_of(request), await body_as(request, GenerateRequest)
    _check(asked)
    call = await checked(services, asked, asked.template, ["completion", *(["insert"] if asked.suffix else [])])
    if not asked.prompt and call.unloads:
        await services.scheduler.expire(call.wanted.path)
        return json_response(_chunk(asked, done=True, done_reason="unload"))
    in_one_piece = not asked.stream or not asked.prompt or asked.debug_render_only
    return Chunked(_chunks(services, call, asked), _merged if in_one_piece else None)


def _check(asked: GenerateRequest) -> None:
    if asked.raw and (asked.template is not None or asked.system is not None or asked.context):
        raise RequestError("raw mode does not support template, system, or context")
    if asked.images:
        raise RequestError(f'"{asked.model}" does not support images: this version reads text only')


async def _chunks(services: Services, call: Call, asked: GenerateRequest) -> AsyncGenerator[GenerateResponse, None]:
    async with services.scheduler.use(call.model, call.wanted, call.keep_alive_s) as resident:
        ready_ns = time.monotonic_ns()
        if not asked.prompt:
            yield _chunk(asked, done=True, done_reason="load")
            return
        tokenizer = tokenizer_of(call, resident.loaded.tokenizer)
        prompt = await asyncio.to_thread(_prompt, call, asked, resident)
        if asked.debug_render_only:
            yield _chunk(asked, debug_info=DebugInfo(prompt))
            return
        token_ids = await asyncio.to_thread(_token_ids, tokenizer, asked.context, prompt)
        async with aclosing(outputs(services, call, resident.loaded, token_ids)) as answer:
            async for output in answer:
                if isinstance(output, Finished):
                    context = [] if asked.raw else list(output.context)
                    yield _chunk(
                        asked,
                        done=True,
                        done_reason=output.reason,
                        context=context,
                        **metrics(call, ready_ns, output),
                    )
                else:
                    yield _chunk(asked, output.text, logprobs=logprobs_of(output))


def _prompt(call: Call, asked: GenerateRequest, resident: Resident) -> str:
    """The text the model continues."""
    if asked.raw:
        return asked.prompt
    template = resident.template(asked.template or call.model.template)
    examples = [] if asked.context else call.model.messages
    return render_generate(
        template,
        prompt=asked.prompt,
        system=(call.model.system or "") if asked.system is None else asked.system,
        suffix=asked.suffix,
        examples=[{"role": example.role, "content": example.content} for example in examples],
        think=asked.think,
    )


def _token_ids(tokenizer: Tokenizer, context: list[int], prompt: str) -> tuple[int, ...]:
    """Ids of *prompt*, after those of an earlier answer's *context* if the client sent them back."""
    if not context:
        return encoded(tokenizer, prompt)
    for i, token_id in enumerate(context):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise RequestError(f"context[{i}]={token_id}: not a token of this model, which has {tokenizer.vocab_size}")
    return (*context, *tokenizer.encode(prompt, add_special=False, parse_special=True))


def _chunk(asked: GenerateRequest, text: str = "", *, done: bool = False, **fields: Any) -> GenerateResponse:
    return msgspec.structs.replace(
        GenerateResponse(model=asked.model, created_at=now(), response=text, done=done), **fields
    )


def _merged(chunks: list[GenerateResponse]) -> GenerateResponse:
    """All chunks as one: the last one with everybody's text."""
    return msgspec.structs.replace(
        chunks[-1],
        response="".join(chunk.response for chunk in chunks),
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
    )

"""``POST /api/generate``: continue a prompt. An empty prompt loads the model, with ``keep_alive`` 0 it unloads it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import RequestError
from ollama_zmq.server.inference import PreparedRequest, encoded, logprobs_of, metrics, outputs, prepare, tokenizer_of
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import DebugInfo, GenerateRequest, GenerateResponse
from ollama_zmq.server.schema.times import now
from ollama_zmq.server.services import Services, body_as, services_of
from ollama_zmq.server.streaming import Chunked, json_response
from ollama_zmq.text.prompts import encode_ends, render_generate
from ollama_zmq.text.tokenizer import Tokenizer


async def generate(http: Request) -> Response:
    """Continue a prompt, in chunks or in one piece."""
    services, request = services_of(http), await body_as(http, GenerateRequest)
    _check(request)
    needs = ["completion", *(["insert"] if request.suffix else [])]
    prepared = await prepare(services, request, go_template=request.template, needs=needs)
    if not request.prompt and prepared.unloads:
        await services.scheduler.expire(prepared.load_spec.path)
        return json_response(_chunk(request, done=True, done_reason="unload"))
    in_one_piece = not request.stream or not request.prompt or request.debug_render_only
    return Chunked(_chunks(services, prepared, request), _merged if in_one_piece else None)


def _check(request: GenerateRequest) -> None:
    if request.raw and (request.template or request.system or request.context):
        raise RequestError("raw mode does not support template, system, or context")
    if request.images:
        raise RequestError(f'"{request.model}" does not support images: this version reads text only')


async def _chunks(
    services: Services, prepared: PreparedRequest, request: GenerateRequest
) -> AsyncGenerator[GenerateResponse, None]:
    async with services.scheduler.use(prepared.model, prepared.load_spec, prepared.keep_alive_s) as resident:
        ready_ns = time.monotonic_ns()
        if not request.prompt:
            yield _chunk(request, done=True, done_reason="load")
            return
        tokenizer = tokenizer_of(prepared, resident.loaded.tokenizer)
        prompt = await services.renderers.run(_prompt, prepared, request, resident, tokenizer)
        if request.debug_render_only:
            before = tokenizer.decode(_context(request, tokenizer), show_control=True)
            yield _chunk(request, debug_info=DebugInfo(before + tokenizer.shown(prompt)))
            return
        token_ids = await services.renderers.run(
            _token_ids, prepared, request, tokenizer, prompt, resident.loaded.num_ctx
        )
        async with aclosing(outputs(services, prepared, resident.loaded, token_ids)) as answer:
            async for output in answer:
                if isinstance(output, Finished):
                    context = [] if request.raw else list(output.context)
                    yield _chunk(
                        request,
                        done=True,
                        done_reason=output.reason,
                        context=context,
                        **metrics(prepared, ready_ns, output),
                    )
                else:
                    yield _chunk(request, output.text, logprobs=logprobs_of(output))


def _prompt(prepared: PreparedRequest, request: GenerateRequest, resident: Resident, tokenizer: Tokenizer) -> str:
    """The text the model continues."""
    if request.raw:
        return request.prompt
    template = resident.template(request.template or prepared.model.template)
    if request.template and template.defect:
        raise RequestError(f"the request's template does not parse: {template.defect}")
    examples = prepared.model.messages if request.context is None else []
    as_text: Callable[[str], str] = str if prepared.options.parse_special else tokenizer.literal
    return render_generate(
        template,
        prompt=as_text(request.prompt),
        system=as_text(request.system) or prepared.model.system or "",
        suffix=as_text(request.suffix),
        examples=[{"role": example.role, "content": example.content} for example in examples],
        think=request.think,
    )


def _token_ids(
    prepared: PreparedRequest, request: GenerateRequest, tokenizer: Tokenizer, prompt: str, num_ctx: int
) -> tuple[int, ...]:
    """Ids of *prompt*, after those of an earlier answer's *context* if the client sent them back."""
    parse_special = prepared.options.parse_special or not request.raw
    context = _context(request, tokenizer)
    if not context:
        may_cut = request.truncate and request.shift
        return encoded(tokenizer, prompt, num_ctx, may_cut=may_cut, parse_special=parse_special)
    added, _ = encode_ends(
        lambda text: tokenizer.encode(text, add_special=False, parse_special=parse_special), prompt, num_ctx
    )
    return (*context, *added)


def _context(request: GenerateRequest, tokenizer: Tokenizer) -> list[int]:
    """The tokens that the client sent back. Raises RequestError if one is none of the model's."""
    context = request.context or []
    for i, token_id in enumerate(context):
        if not 0 <= token_id < tokenizer.vocab_size:
            raise RequestError(f"context[{i}]={token_id}: not a token of this model, which has {tokenizer.vocab_size}")
    return context


def _chunk(request: GenerateRequest, text: str = "", *, done: bool = False, **fields: Any) -> GenerateResponse:
    return msgspec.structs.replace(
        GenerateResponse(model=request.model, created_at=now(), response=text, done=done), **fields
    )


def _merged(chunks: list[GenerateResponse]) -> GenerateResponse:
    """All chunks as one: the last one with everybody's text."""
    return msgspec.structs.replace(
        chunks[-1],
        response="".join(chunk.response for chunk in chunks),
        logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
    )

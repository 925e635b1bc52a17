"""``POST /api/generate``: continue a prompt. An empty prompt loads the model, with ``keep_alive`` 0 it unloads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import RequestError
from ollama_zmq.server.exchange import Exchange, respond
from ollama_zmq.server.inference import PreparedRequest, encoded
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import DebugInfo, GenerateRequest, GenerateResponse
from ollama_zmq.server.schema.times import now
from ollama_zmq.server.services import body_as, services_of
from ollama_zmq.text.prompts import encode_ends, render_generate
from ollama_zmq.text.tokenizer import Tokenizer


async def generate(http: Request) -> Response:
    """Continue a prompt, in chunks or in one piece."""
    return await respond(services_of(http), GenerateExchange(await body_as(http, GenerateRequest)))


class GenerateExchange(Exchange[GenerateResponse]):
    """A prompt and what goes on from it."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request: GenerateRequest = request
        self.go_template = request.template

    @property
    def is_empty(self) -> bool:
        """See :class:`Exchange`."""
        return not self.request.prompt

    def check(self) -> None:
        """See :class:`Exchange`."""
        request = self.request
        if request.raw and (request.template or request.system or request.context):
            raise RequestError("raw mode does not support template, system, or context")
        if request.images:
            raise RequestError(f'"{request.model}" does not support images: this version reads text only')

    def needs(self) -> Sequence[str]:
        """See :class:`Exchange`."""
        return ["completion", *(["insert"] if self.request.suffix else [])]

    def prompt(self, prepared: PreparedRequest, resident: Resident, tokenizer: Tokenizer) -> str:
        """See :class:`Exchange`."""
        request = self.request
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

    def token_ids(self, prepared: PreparedRequest, tokenizer: Tokenizer, prompt: str, num_ctx: int) -> tuple[int, ...]:
        """Ids of *prompt*, after those of an earlier answer's *context* if the client sent them back."""
        request = self.request
        parse_special = prepared.options.parse_special or not request.raw
        context = self._context(tokenizer)
        if not context:
            may_cut = request.truncate and request.shift
            return encoded(tokenizer, prompt, num_ctx, may_cut=may_cut, parse_special=parse_special)
        added, _ = encode_ends(
            lambda text: tokenizer.encode(text, add_special=False, parse_special=parse_special), prompt, num_ctx
        )
        return (*context, *added)

    def _context(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens that the client sent back. Raises RequestError if one is none of the model's."""
        context, n = self.request.context or [], tokenizer.vocab_size
        for i, token_id in enumerate(context):
            if not 0 <= token_id < n:
                raise RequestError(f"context[{i}]={token_id}: not a token of this model, which has {n}")
        return context

    def rendered(self, tokenizer: Tokenizer, prompt: str) -> GenerateResponse:
        """See :class:`Exchange`."""
        before = tokenizer.decode(self._context(tokenizer), show_control=True)
        return self.chunk(debug_info=DebugInfo(before + tokenizer.shown(prompt)))

    def chunk(self, text: str = "", **fields: Any) -> GenerateResponse:
        """See :class:`Exchange`."""
        empty = GenerateResponse(model=self.request.model, created_at=now(), response=text, done=False)
        return msgspec.structs.replace(empty, **fields)

    def finished(self, output: Finished) -> dict[str, Any]:
        """The tokens so far, to go on from."""
        return {"context": [] if self.request.raw else list(output.context)}

    def merged(self, chunks: list[GenerateResponse]) -> GenerateResponse:
        """See :class:`Exchange`."""
        return msgspec.structs.replace(
            chunks[-1],
            response="".join(chunk.response for chunk in chunks),
            logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
        )

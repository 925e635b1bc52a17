"""``POST /api/chat``: the next message of a conversation. No messages load it, with ``keep_alive`` 0 unload."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import RequestError
from ollama_zmq.server.exchange import Exchange, respond
from ollama_zmq.server.inference import PreparedRequest, encoded
from ollama_zmq.server.names import required_name
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import ChatRequest, ChatResponse, DebugInfo, ReceivedMessage, ResponseMessage
from ollama_zmq.server.schema.times import now
from ollama_zmq.server.services import body_as, services_of
from ollama_zmq.text import templates
from ollama_zmq.text.prompts import conversation, literal, newest_that_fit
from ollama_zmq.text.tokenizer import Tokenizer


async def chat(http: Request) -> Response:
    """Answer a conversation, in chunks or in one piece."""
    return await respond(services_of(http), ChatExchange(await body_as(http, ChatRequest)))


class ChatExchange(Exchange[ChatResponse]):
    """A conversation and the message that goes on from it."""

    def __init__(self, request: ChatRequest) -> None:
        self.request: ChatRequest = request

    @property
    def is_empty(self) -> bool:
        """See :class:`Exchange`."""
        return not self.request.messages

    def check(self) -> None:
        """See :class:`Exchange`."""
        required_name(self.request.model)
        if any(message.images for message in self.request.messages):
            raise RequestError(f'"{self.request.model}" does not support images: this version reads text only')

    def needs(self) -> Sequence[str]:
        """See :class:`Exchange`."""
        return ["completion", *(["tools"] if self.request.tools else [])]

    def prompt(self, prepared: PreparedRequest, resident: Resident, tokenizer: Tokenizer) -> str:
        """The conversation as the model was trained to read it, without the oldest messages if they do not fit."""
        request, template = self.request, resident.template(prepared.model.template)
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

    def token_ids(self, prepared: PreparedRequest, tokenizer: Tokenizer, prompt: str, num_ctx: int) -> tuple[int, ...]:
        """See :class:`Exchange`."""
        return encoded(tokenizer, prompt, num_ctx, may_cut=self.request.truncate and self.request.shift)

    def rendered(self, tokenizer: Tokenizer, prompt: str) -> ChatResponse:
        """See :class:`Exchange`."""
        return self.chunk(message=ResponseMessage("", ""), debug_info=DebugInfo(tokenizer.shown(prompt)))

    def chunk(self, text: str = "", **fields: Any) -> ChatResponse:
        """See :class:`Exchange`."""
        message = ResponseMessage("assistant", text)
        empty = ChatResponse(model=self.request.model, created_at=now(), message=message, done=False)
        return msgspec.structs.replace(empty, **fields)

    def finished(self, output: Finished) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def merged(self, chunks: list[ChatResponse]) -> ChatResponse:
        """See :class:`Exchange`."""
        last, text = chunks[-1], "".join(chunk.message.content for chunk in chunks)
        return msgspec.structs.replace(
            last,
            message=msgspec.structs.replace(last.message, content=text),
            logprobs=[entry for chunk in chunks for entry in chunk.logprobs],
        )


def _as_template_wants(message: ReceivedMessage) -> templates.Message:
    fields: dict[str, object] = msgspec.to_builtins(message)
    kept = {name: value for name, value in fields.items() if value or name == "content"}
    return kept | {"role": message.role.lower()}

"""Bodies and answers of ``/api/generate`` and ``/api/chat``."""

from __future__ import annotations

from typing import Any

import msgspec


class ResponseMessage(msgspec.Struct, omit_defaults=True):
    """One turn of a conversation, in requests and responses."""

    role: str
    content: str
    thinking: str = ""
    images: list[str] = []
    tool_calls: list[dict[str, Any]] = []
    tool_name: str = ""
    tool_call_id: str = ""


class CalledFunction(msgspec.Struct, omit_defaults=True):
    """The function of a :class:`ToolCall`; ``index`` is the call's place among those of its message."""

    name: str = ""
    arguments: dict[str, Any] = {}
    index: int = 0


class ToolCall(msgspec.Struct, omit_defaults=True):
    """A call that the model made, as clients send it back."""

    function: CalledFunction
    id: str = ""
    type: str = ""


class ReceivedMessage(msgspec.Struct):
    """A message as clients send it: anything may be missing."""

    role: str = ""
    content: str = ""
    thinking: str = ""
    images: list[str] = []
    tool_calls: list[ToolCall] = []
    tool_name: str = ""
    tool_call_id: str = ""


class Inference(msgspec.Struct, kw_only=True):
    """What ``/api/generate`` and ``/api/chat`` share.

    Attributes:
        format: "json" or a JSON schema; "" means none, {} is a schema.
        think: a switch or a level; None leaves it to the model's template.
        keep_alive: seconds, or a Go duration.
        truncate: cut a prompt that is longer than the context.
        shift: forget the oldest half when the context is full, instead of stopping.
    """

    model: str = ""
    stream: bool = True
    format: str | dict[str, Any] = ""
    keep_alive: int | float | str | None = None
    options: dict[str, Any] = {}
    think: bool | str | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: int = 0
    debug_render_only: bool = msgspec.field(default=False, name="_debug_render_only")


class GenerateRequest(Inference, kw_only=True):
    """Body of ``POST /api/generate``.

    Attributes:
        context: tokens of an earlier answer to go on from; an empty list, unlike None, begins without the model's
            MESSAGEs.
    """

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: str = ""
    context: list[int] | None = None
    raw: bool = False
    images: list[str] = []


class ChatRequest(Inference, kw_only=True):
    """Body of ``POST /api/chat``."""

    messages: list[ReceivedMessage] = []
    tools: list[dict[str, Any]] = []


class TopLogprob(msgspec.Struct):
    """A token that might have come instead."""

    token: str
    logprob: float
    bytes: list[int]


class Logprob(msgspec.Struct, omit_defaults=True):
    """A token that came, with its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob] = []


class DebugInfo(msgspec.Struct, omit_defaults=True):
    """Answer to ``_debug_render_only``."""

    rendered_template: str
    image_count: int = 0


class GenerateResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A chunk of ``/api/generate``, or all of them in one. Durations are nanoseconds; numbers stand in the last one."""

    model: str
    created_at: str
    response: str
    done: bool
    done_reason: str = ""
    context: list[int] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")
    logprobs: list[Logprob] = []


class ChatResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A chunk of ``/api/chat``, or all of them in one; numbers as in :class:`GenerateResponse`, behind the rest."""

    model: str
    created_at: str
    message: ResponseMessage
    done: bool
    done_reason: str = ""
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")
    logprobs: list[Logprob] = []
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0

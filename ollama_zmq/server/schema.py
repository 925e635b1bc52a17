"""What Ollama's clients send and expect, name by name. What Ollama leaves out when it is zero has a default here.

How bodies are read stands in :mod:`ollama_zmq.server.decoding`. A text that is "" was not given: Ollama's own client
always sends ``system``, ``template`` and ``suffix``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
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


class Details(msgspec.Struct, omit_defaults=True):
    """What lists say about a model. The lengths, of context and hidden state, are in ``/api/tags`` only."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str
    context_length: int = 0
    embedding_length: int = 0


class ModelEntry(msgspec.Struct, omit_defaults=True):
    """A line of ``/api/tags``. ``digest`` has no "sha256:" in front."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details
    capabilities: list[str] = []


class RunningModel(msgspec.Struct):
    """A line of ``/api/ps``."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class ModelRequest(msgspec.Struct, kw_only=True):
    """Bodies that name a model. ``name`` is what old clients call ``model``."""

    model: str = ""
    name: str = ""

    @property
    def model_name(self) -> str:
        """The model's name as the client wrote it."""
        return self.model or self.name


class ShowRequest(ModelRequest, kw_only=True):
    """Body of ``POST /api/show``; ``system`` and ``options`` are shown in place of the model's own."""

    verbose: bool = False
    system: str = ""
    options: dict[str, Any] = {}


class PlanRequest(ModelRequest, kw_only=True):
    """Body of ``POST /api/cluster/plan``; ``options`` as a request that loads the model would have them."""

    options: dict[str, Any] = {}


class TensorEntry(msgspec.Struct):
    """A tensor of the file, sizes as GGUF has them (the last axis first)."""

    name: str
    type: str
    shape: list[int]


class ShowResponse(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answer of ``/api/show``."""

    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    system: str = ""
    renderer: str = ""
    parser: str = ""
    details: Details
    messages: list[ResponseMessage] = []
    model_info: dict[str, Any]
    projector_info: dict[str, Any] = {}
    tensors: list[TensorEntry] = []
    capabilities: list[str] = []
    modified_at: str = ""
    requires: str = ""


class CopyRequest(msgspec.Struct):
    """Body of ``POST /api/copy``."""

    source: str = ""
    destination: str = ""


class CreateRequest(ModelRequest, kw_only=True):
    """Body of ``POST /api/create``. ``files`` and ``adapters`` map file names to digests of uploaded blobs.

    ``quantization`` is what old clients call ``quantize``.
    """

    from_: str = msgspec.field(default="", name="from")
    files: dict[str, str] = {}
    adapters: dict[str, str] = {}
    draft_files: dict[str, str] = {}
    quantize: str = ""
    quantization: str = ""
    draft_quantize: str = ""
    remote_host: str = ""
    template: str = ""
    license: str | list[str] = []
    system: str = ""
    parameters: dict[str, Any] = {}
    messages: list[ReceivedMessage] = []
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    capabilities: list[str] = []
    info: dict[str, Any] = {}
    stream: bool = True


class Progress(msgspec.Struct):
    """A line of a long operation."""

    status: str


def rfc3339(nanoseconds: int) -> str:
    """A moment, counted from the epoch, as Go prints it: UTC, up to nine digits, no zeros behind."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0") if fraction else ""
    return f"{text}{digits}Z"


def now() -> str:
    """The moment, for ``created_at``."""
    return rfc3339(time.time_ns())

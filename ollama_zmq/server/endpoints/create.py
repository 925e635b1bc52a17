"""``POST /api/create``: a new model from uploaded blobs or another model, told step by step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.convert.convert import converted
from ollama_zmq.errors import ModelNotFound, RequestError
from ollama_zmq.formats.modelfile import ROLES, ChatMessage, checked_version
from ollama_zmq.formats.options import DEPRECATED, Options, merge_options
from ollama_zmq.server.model_check import check_model, check_template
from ollama_zmq.server.names import checked_name, plain_name
from ollama_zmq.server.schema.models import CreateRequest, Progress
from ollama_zmq.server.services import Services, body_as, services_of
from ollama_zmq.server.streaming import Chunked, Statuses
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.names import ModelName, parse_name

UNSUPPORTED = {
    "quantize": "not supported yet; quantize the GGUF file before creating",
    "quantization": "not supported yet; quantize the GGUF file before creating",
    "adapters": "not supported yet; merge the adapter into the model's GGUF file before creating",
    "draft_files": "draft models are not supported yet; leave them out",
    "draft_quantize": "draft models are not supported yet; leave it out",
    "remote_host": "models of another host are not supported",
    "renderer": "built-in renderers are not supported yet; leave it out, and the model's template writes the prompt",
    "parser": "built-in parsers are not supported yet; leave it out, and the answer is told as the model writes it",
    "capabilities": "they are read from the model's file and template; leave them out",
    "info": "it is read from the model's file; leave it out",
}


async def create(http: Request) -> Response:
    """Make or replace a model."""
    services, request = services_of(http), await body_as(http, CreateRequest)
    name, recipe = _target(request.model_name), recipe_of(request)
    return Chunked(_progress(services, name, recipe), None if request.stream else _last)


def _target(requested: str) -> ModelName:
    """The name of the model to make. Raises RequestError if it is none, or empty."""
    try:
        return parse_name(checked_name(requested))
    except ModelNotFound:
        raise RequestError("invalid model name", model=requested) from None


def recipe_of(request: CreateRequest) -> Recipe:
    """What the store is to do.

    Raises:
        RequestError: a parameter or a role is unknown, a value has the wrong type, a template, name or version is
            none, or something is asked for that is not built.
    """
    _check_supported(request)
    for message in request.messages:
        if message.role not in ROLES:
            raise RequestError(f"message role {message.role!r}: must be one of {', '.join(ROLES)}")
        if message.images or message.tool_calls or message.thinking:
            raise RequestError("messages: a model's examples are texts here; leave images, tool_calls and thinking out")
    if request.template:
        check_template(request.template)
    return Recipe(
        from_=checked_name(request.from_) if plain_name(request.from_) else None,
        files=request.files,
        adapters=request.adapters,
        template=request.template or None,
        system=request.system or None,
        license=[request.license] if isinstance(request.license, str) else request.license,
        parameters=_parameters(request.parameters),
        messages=[ChatMessage(message.role, message.content) for message in request.messages],
        requires=checked_version(request.requires or None),
    )


def _check_supported(request: CreateRequest) -> None:
    """Refuse what a model would be made without, in words that say what to do instead. Raises RequestError."""
    for name, advice in UNSUPPORTED.items():
        if value := getattr(request, name):
            shown = f"{name}={value!r}" if isinstance(value, str) else name
            raise RequestError(f"{shown}: {advice}", field=name)


def _parameters(given: dict[str, object]) -> dict[str, object]:
    """*given* with a single ``stop`` as a list, checked as options are."""
    known = {name: value for name, value in given.items() if name not in DEPRECATED}
    for name in known:
        if name not in Options.__struct_fields__:
            raise RequestError(f"unknown parameter '{name}'", parameter=name)
    if isinstance(stop := known.get("stop"), str):
        known["stop"] = [stop]
    merge_options(Options(), known, None)
    return known


async def _progress(services: Services, name: ModelName, recipe: Recipe) -> AsyncGenerator[Progress, None]:
    def work(emit: Callable[[str], None]) -> None:
        services.store.create(name, recipe, emit, check_model, converted)

    async for line in Statuses(work).lines():
        yield Progress(line)


def _last(chunks: list[Progress]) -> Progress:
    return chunks[-1]

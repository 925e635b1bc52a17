"""``POST /api/create``: a new model from uploaded blobs or another model, told step by step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.errors import ModelNotFound, RequestError
from ollama_zmq.formats.modelfile import ROLES, ChatMessage
from ollama_zmq.formats.options import DEPRECATED, Options, merge_options
from ollama_zmq.server.model_check import check_model, check_template
from ollama_zmq.server.names import checked_name, plain_name
from ollama_zmq.server.schema import CreateRequest, Progress
from ollama_zmq.server.services import Services, body_as, services_of
from ollama_zmq.server.streaming import Chunked, Statuses
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.names import ModelName, parse_name


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
        RequestError: a parameter or a role is unknown, a value has the wrong type, a template does not parse, or
            something is asked for that is not built.
    """
    if request.quantize:
        raise RequestError(f"quantize={request.quantize!r}: not supported yet; quantize the GGUF file before creating")
    if request.adapters:
        raise RequestError("adapters: not supported yet; merge the adapter into the model's GGUF file before creating")
    if request.draft_files:
        raise RequestError("draft_files: draft models are not supported yet; leave them out")
    if request.draft_quantize:
        raise RequestError(
            f"draft_quantize={request.draft_quantize!r}: draft models are not supported yet; leave it out"
        )
    if request.remote_host:
        raise RequestError(f"remote_host={request.remote_host!r}: models of another host are not supported")
    for message in request.messages:
        if message.role not in ROLES:
            raise RequestError(f"message role {message.role!r}: must be one of {', '.join(ROLES)}")
    if request.template:
        check_template(request.template)
    return Recipe(
        from_=plain_name(request.from_) or None,
        files=request.files,
        adapters=request.adapters,
        template=request.template or None,
        system=request.system or None,
        license=[request.license] if isinstance(request.license, str) else request.license,
        parameters=_parameters(request.parameters),
        messages=[ChatMessage(message.role, message.content) for message in request.messages],
        renderer=request.renderer or None,
        parser=request.parser or None,
        requires=request.requires or None,
    )


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
        services.store.create(name, recipe, emit, check_model)

    async for line in Statuses(work).lines():
        yield Progress(line)


def _last(chunks: list[Progress]) -> Progress:
    return chunks[-1]

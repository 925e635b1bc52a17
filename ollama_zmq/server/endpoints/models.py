"""The models on disk: ``/api/tags``, ``/api/show``, ``/api/copy``, ``/api/delete``; and in memory: ``/api/ps``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats import manifest as records
from ollama_zmq.formats.gguf import GgufFile, open_gguf
from ollama_zmq.formats.gguf_header import Metadata, readable
from ollama_zmq.formats.modelfile import Modelfile, format_modelfile
from ollama_zmq.formats.options import format_parameters
from ollama_zmq.server.facts import facts_of
from ollama_zmq.server.names import named, required_name
from ollama_zmq.server.resident import Resident
from ollama_zmq.server.schema.generation import ResponseMessage
from ollama_zmq.server.schema.models import (
    CopyRequest,
    Details,
    ModelEntry,
    ModelRequest,
    RunningModel,
    ShowRequest,
    ShowResponse,
    TensorEntry,
)
from ollama_zmq.server.schema.times import rfc3339
from ollama_zmq.server.services import body_as, services_of
from ollama_zmq.server.streaming import json_response
from ollama_zmq.store.models import Store
from ollama_zmq.store.stored_model import StoredModel

MAX_SHOWN_ITEMS = 5
COPILOT = "GitHubCopilotChat/"  # it takes general.basename for the name to ask for
HIDDEN_KEYS = frozenset(("general.name", "tokenizer.chat_template"))


async def tags(http: Request) -> Response:
    """All models, the newest first."""
    return json_response({"models": await asyncio.to_thread(_entries, services_of(http).store)})


async def ps(http: Request) -> Response:
    """The models in memory, the one that expires last first."""
    return json_response({"models": [_running(resident) for resident in services_of(http).scheduler.residents]})


def _running(resident: Resident) -> RunningModel:
    model, loaded = resident.model, resident.loaded
    return RunningModel(
        name=model.name.short,
        model=model.name.short,
        size=loaded.size,
        digest=model.digest,
        details=details_of(model),
        expires_at=rfc3339(round(resident.expires_at * 1e9)),
        size_vram=0,  # no device of this version is a GPU
        context_length=loaded.num_ctx,
    )


async def show(http: Request) -> Response:
    """Everything about one model."""
    request = await body_as(http, ShowRequest)
    store, name = services_of(http).store, required_name(request.model_name)
    shown = await asyncio.to_thread(store.read, name, lambda model: _shown(model, request))
    if http.headers.get("user-agent", "").startswith(COPILOT):
        shown.model_info["general.basename"] = request.model_name
    return json_response(shown)


async def copy(http: Request) -> Response:
    """Give a model a second name."""
    request = await body_as(http, CopyRequest)
    source, destination = named("source", request.source), named("destination", request.destination)
    await asyncio.to_thread(services_of(http).store.copy, source, destination)
    return Response()


async def delete(http: Request) -> Response:
    """Remove a model; one that is loaded is unloaded when its last request is done."""
    services, request = services_of(http), await body_as(http, ModelRequest)
    name = await asyncio.to_thread(services.store.delete, named("name", request.model_name))
    for resident in services.scheduler.residents:
        if resident.model.name == name:
            await services.scheduler.expire(resident.loaded.request.path)
    return Response()


def details_of(model: StoredModel) -> Details:
    """What lists say about *model*."""
    config = model.config
    families = None if config.model_families is None else list(config.model_families)
    parent = model.parent_model
    return Details(parent, config.model_format, config.model_family, families, config.model_type, config.file_type)


def _entries(store: Store) -> list[ModelEntry]:
    return [_entry(model) for model in store.list()]


def _entry(model: StoredModel) -> ModelEntry:
    entry = ModelEntry(
        name=model.name.short,
        model=model.name.short,
        modified_at=_modified(model),
        size=model.size,
        digest=model.digest,
        details=details_of(model),
    )
    with suppress(OllamaZmqError, OSError):  # a model whose file is damaged is still listed, so that it can be removed
        facts = facts_of(model)
        entry.capabilities = list(facts.capabilities)
        entry.details.context_length = facts.context_length
        entry.details.embedding_length = facts.embedding_length
    return entry


def _modified(model: StoredModel) -> str:
    return rfc3339(int(model.modified.timestamp() * 1e6) * 1000)


def _shown(model: StoredModel, request: ShowRequest) -> ShowResponse:
    facts = facts_of(model)
    with open_gguf(model.gguf_path) as gguf:
        info = _model_info(gguf, verbose=request.verbose)
        tensors = _tensors(gguf)
    system = request.system or model.system or ""
    parameters = model.parameters | request.options
    return ShowResponse(
        license="\n".join(model.license),
        modelfile=_modelfile(model, system, parameters),
        parameters=format_parameters(parameters),
        template=facts.template,
        system=system,
        renderer=model.config.renderer,
        parser=model.config.parser,
        details=details_of(model),
        messages=[ResponseMessage(message.role, message.content) for message in model.messages],
        model_info=info,
        tensors=tensors,
        capabilities=list(facts.capabilities),
        modified_at=_modified(model),
        requires=model.config.requires,
    )


def _modelfile(model: StoredModel, system: str, parameters: Mapping[str, object]) -> str:
    return format_modelfile(
        Modelfile(
            sources=(str(model.gguf_path),),
            parameters=tuple(_parameter_lines(parameters)),
            template=model.template,
            system=system or None,
            adapters=tuple(map(str, model.paths(records.ADAPTER_TYPE))),
            licenses=tuple(model.license),
            messages=tuple(model.messages),
            requires=model.config.requires or None,
            renderer=model.config.renderer or None,
            parser=model.config.parser or None,
        ),
        model.name.short,
    )


def _parameter_lines(parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    return [
        (name, str(item).lower() if isinstance(item, bool) else str(item))
        for name, value in sorted(parameters.items())
        for item in (value if isinstance(value, list | tuple) else [value])
    ]


def _model_info(gguf: GgufFile, *, verbose: bool) -> dict[str, object]:
    """The header's pairs; long arrays are empty unless *verbose*, so that a vocabulary is not sent by chance."""
    metadata = gguf.metadata
    info = {key: _value(metadata, key, verbose) for key in metadata if key not in HIDDEN_KEYS}
    return {"general.parameter_count": gguf.n_parameters} | info


def _value(metadata: Metadata, key: str, verbose: bool) -> object:
    length = metadata.array_length(key)
    if length is not None and length > MAX_SHOWN_ITEMS and not verbose:
        return []
    value = metadata[key]
    if isinstance(value, list):
        return [readable(text) for text in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _tensors(gguf: GgufFile) -> list[TensorEntry]:
    return [TensorEntry(info.name, info.type.name, list(reversed(info.shape))) for info in gguf.tensors.values()]

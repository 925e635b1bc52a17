"""``/``, ``/api/version``, and the routes of Ollama that are not there yet."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ollama_zmq.server.errors import NotThereYet
from ollama_zmq.server.streaming import json_response
from ollama_zmq.version import VERSION

MISSING = {
    "/api/pull": "pulling models; make one from a GGUF file with `ollama create`",
    "/api/push": "pushing models",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/v1/chat/completions": "the OpenAI API; use /api/chat",
    "/v1/completions": "the OpenAI API; use /api/generate",
    "/v1/embeddings": "the OpenAI API",
    "/v1/responses": "the OpenAI API; use /api/chat",
    "/v1/models": "the OpenAI API; use /api/tags",
    "/v1/models/{model}": "the OpenAI API; use /api/show",
    "/v1/messages": "the Anthropic API; use /api/chat",
}


async def root(request: Request) -> Response:
    """What people look at in a browser to see whether the server is up."""
    return PlainTextResponse("Ollama is running")


async def version(request: Request) -> Response:
    """The version of the package."""
    return json_response({"version": VERSION})


async def missing(request: Request) -> Response:
    """Say what is not there."""
    path: str = request.scope["route"].path
    raise NotThereYet(f"{path} is not there yet in ollama-zmq {VERSION}: {MISSING[path]}")

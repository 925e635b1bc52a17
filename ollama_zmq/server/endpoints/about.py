"""``/``, ``/api/version``, what clients ask at their start about an account, and the routes that are not there yet."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ollama_zmq.server.errors import NotThereYet
from ollama_zmq.server.streaming import json_response
from ollama_zmq.version import OLLAMA_VERSION, VERSION

MISSING = {
    "/api/pull": "pulling models; make one from a GGUF file with `ollama create`",
    "/api/push": "pushing models",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
    "/api/experimental/web_search": "searching the web",
    "/api/experimental/web_fetch": "fetching from the web",
    "/v1/chat/completions": "the OpenAI API; use /api/chat",
    "/v1/completions": "the OpenAI API; use /api/generate",
    "/v1/embeddings": "the OpenAI API",
    "/v1/responses": "the OpenAI API; use /api/chat",
    "/v1/audio/transcriptions": "the OpenAI API",
    "/v1/images/generations": "making pictures",
    "/v1/images/edits": "making pictures",
    "/v1/models": "the OpenAI API; use /api/tags",
    "/v1/models/{model:path}": "the OpenAI API; use /api/show",
    "/v1/messages": "the Anthropic API; use /api/chat",
}


async def root(request: Request) -> Response:
    """What people look at in a browser to see whether the server is up."""
    return PlainTextResponse("Ollama is running")


async def version(request: Request) -> Response:
    """The version of Ollama whose interface this is; our own is in ``/api/cluster``."""
    return json_response({"version": OLLAMA_VERSION})


async def status(request: Request) -> Response:
    """That there is no cloud behind this server."""
    return json_response({"cloud": {"disabled": True, "source": "config"}})


async def me(request: Request) -> Response:
    """Who is signed in at ollama.com: nobody can be."""
    return json_response({"error": "account unavailable"}, 503)


async def signout(request: Request) -> Response:
    """The end of a session at ollama.com that was never begun."""
    return json_response({"error": "you are not currently signed in"}, 401)


async def recommendations(request: Request) -> Response:
    """Models to try: none in particular."""
    return json_response({"recommendations": []})


async def missing(request: Request) -> Response:
    """Say what is not there."""
    reason = MISSING[request.scope["route"].path]
    raise NotThereYet(f"{request.url.path} is not there yet in ollama-zmq {VERSION}: {reason}")

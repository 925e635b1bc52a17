"""The routes of the API as one ASGI application, and what surrounds them: guards, errors, start and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.server.endpoints import about, blobs, chat, cluster, create, generate, models
from ollama_zmq.server.guards import HostGuard, OriginGuard
from ollama_zmq.server.services import Services
from ollama_zmq.server.streaming import error_response

log = structlog.get_logger()

ROUTES = [
    Route("/", about.root),
    Route("/api/version", about.version),
    Route("/api/generate", generate.generate, methods=["POST"]),
    Route("/api/chat", chat.chat, methods=["POST"]),
    Route("/api/tags", models.tags),
    Route("/api/ps", models.ps),
    Route("/api/show", models.show, methods=["POST"]),
    Route("/api/copy", models.copy, methods=["POST"]),
    Route("/api/delete", models.delete, methods=["DELETE"]),
    Route("/api/create", create.create, methods=["POST"]),
    Route("/api/blobs/{digest}", blobs.head, methods=["HEAD"]),
    Route("/api/blobs/{digest}", blobs.upload, methods=["POST"]),
    Route("/api/cluster", cluster.cluster),
    *(Route(path, about.missing, methods=["GET", "POST"]) for path in about.MISSING),
]


def make_app(services: Services) -> Starlette:
    """The application. Its lifespan starts and closes the broker, and tidies the store."""
    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(OriginGuard, patterns=services.config.origins),
            Middleware(HostGuard, is_loopback=services.config.host.is_loopback),
        ],
        exception_handlers={OllamaZmqError: _refused, HTTPException: _not_routed, Exception: _refused},
        lifespan=_lifespan,
    )
    app.state.services = services
    return app


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    services: Services = app.state.services
    await asyncio.to_thread(services.broker.start)
    pruning = asyncio.create_task(asyncio.to_thread(_prune, services))
    try:
        yield
    finally:
        await asyncio.wait((pruning,))
        services.scheduler.close()
        await asyncio.to_thread(services.broker.close)


def _prune(services: Services) -> None:
    """Delete what no model needs. A store that cannot be tidied still serves."""
    try:
        removed = services.store.prune(time.time())
    except OSError as error:
        log.warning("store.not_pruned", error=str(error))
        return
    if removed:
        log.info("store.pruned", files=len(removed))


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(error)


async def _not_routed(request: Request, error: Exception) -> Response:
    """404 and 405 are plain text, as with Ollama's router."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase.lower()
    return PlainTextResponse(f"{error.status_code} {phrase.replace('not found', 'page not found')}", error.status_code)

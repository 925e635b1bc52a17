"""The routes of the API as one ASGI application, and what surrounds them: guards, errors, start and end.

The server answers before the broker and numpy are imported: they come in a thread while it already listens, and
endpoints that need them are imported, and wait, with their first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from ollama_zmq.config import Config
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.server.endpoints import about
from ollama_zmq.server.errors import family_of
from ollama_zmq.server.guards import HostGuard, OriginGuard
from ollama_zmq.server.streaming import error_response, json_response

if TYPE_CHECKING:
    from ollama_zmq.server.services import Services


def lazily(module: str, function: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint *function* of ``endpoints/<module>.py``, imported once the services are there."""

    async def endpoint(request: Request) -> Response:
        await asyncio.shield(request.app.state.services)
        found = getattr(import_module(f"ollama_zmq.server.endpoints.{module}"), function)
        response: Response = await found(request)
        return response

    return endpoint


TAKES_HEAD = ("/", "/api/version", "/api/tags")
ROUTES = [
    Route("/", about.root),
    Route("/api/version", about.version),
    Route("/api/status", about.status),
    Route("/api/me", about.me, methods=["POST"]),
    Route("/api/signout", about.signout, methods=["POST"]),
    Route("/api/user/keys/{key}", about.signout, methods=["DELETE"]),
    Route("/api/experimental/model-recommendations", about.recommendations),
    Route("/api/generate", lazily("generate", "generate"), methods=["POST"]),
    Route("/api/chat", lazily("chat", "chat"), methods=["POST"]),
    Route("/api/tags", lazily("models", "tags")),
    Route("/api/ps", lazily("models", "ps")),
    Route("/api/show", lazily("models", "show"), methods=["POST"]),
    Route("/api/copy", lazily("models", "copy"), methods=["POST"]),
    Route("/api/delete", lazily("models", "delete"), methods=["DELETE"]),
    Route("/api/create", lazily("create", "create"), methods=["POST"]),
    Route("/api/blobs/{digest}", lazily("blobs", "head"), methods=["HEAD"]),
    Route("/api/blobs/{digest}", lazily("blobs", "upload"), methods=["POST"]),
    Route("/api/cluster", lazily("cluster", "cluster")),
    Route("/api/cluster/plan", lazily("cluster", "plan"), methods=["POST"]),
    *(
        Route(path, about.missing, methods=["GET" if path.startswith("/v1/models") else "POST"])
        for path in about.MISSING
    ),
]
for route in ROUTES:
    if route.methods and route.path not in TAKES_HEAD and "GET" in route.methods:
        route.methods.discard("HEAD")  # which Starlette adds to every GET


def make_app(
    config: Config,
    open_services: Callable[[], Services],
    on_failure: Callable[[BaseException], None] = lambda error: None,
) -> Starlette:
    """The application.

    Args:
        open_services: runs in a thread while the first requests are answered already.
        on_failure: told what it raised, if it did; every request that needs the services is told as well.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        opening = app.state.services = asyncio.ensure_future(asyncio.to_thread(open_services))
        opening.add_done_callback(lambda opened: _report_failure(opened, on_failure))
        try:
            yield
        finally:
            await asyncio.wait((opening,))
            if opening.exception() is None:
                opening.result().scheduler.close()
                await asyncio.to_thread(opening.result().broker.close)

    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(OriginGuard, patterns=config.origins),
            Middleware(HostGuard, is_loopback=config.host.is_loopback),
        ],
        exception_handlers={
            OllamaZmqError: _refused,
            OSError: _refused,
            HTTPException: _not_routed,
            Exception: _refused,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # see _without_slash
    return app


def _report_failure(opened: asyncio.Future[Services], on_failure: Callable[[BaseException], None]) -> None:
    error = opened.exception()
    if error is not None:
        on_failure(error)


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(error, family_of(request.url.path))


async def _not_routed(request: Request, error: Exception) -> Response:
    """404 and 405 are plain text, as with Ollama's router, but for the families whose clients read JSON only."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (redirect := _without_slash(request.scope)):
        return redirect
    phrase = HTTPStatus(error.status_code).phrase.lower()
    text = f"{error.status_code} {phrase.replace('not found', 'page not found')}"
    if family := family_of(request.url.path):
        return json_response(family(error.status_code, f"{text}: {request.url.path}"), error.status_code)
    return PlainTextResponse(text, error.status_code)


def _without_slash(scope: Scope) -> Response | None:
    """A redirect to the same path without the slash at its end, if that is a route for the method.

    As Ollama's router does it, gin: 301 for GET and 307, which keeps the body, for the rest. The place has no host in
    it, so that it is right behind a proxy, and a stranger's Host does not get into it.
    """
    path: str = scope["path"]
    shorter = {**scope, "path": path[:-1]}
    if not path.endswith("/") or not any(route.matches(shorter)[0] is Match.FULL for route in ROUTES):
        return None
    status = 301 if scope["method"] == "GET" else 307
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    location = (scope["raw_path"].removesuffix(b"/") + query).decode("latin-1")
    return PlainTextResponse(f"{status} {HTTPStatus(status).phrase.lower()}", status, {"location": location})

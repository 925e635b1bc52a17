"""Who may call: Ollama's rules against foreign web pages, as ASGI middlewares.

Host      a server that listens on loopback answers to names of this machine and its network only, so that a
          page cannot reach it through a name of its own (DNS rebinding); others get 403 without a body.
Origin    a browser's page may call if its origin matches a pattern; others get 403. Programs send no Origin.
          A ``*`` stands for any part of a host's name, and behind a colon for a port.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
MAX_AGE_S = 12 * 3600
_STAINLESS = (
    "arch",
    "async",
    "custom-poll-interval",
    "helper-method",
    "lang",
    "os",
    "package-version",
    "poll-helper",
    "retry-count",
    "runtime",
    "runtime-version",
    "timeout",
)
HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "OpenAI-Beta"]
    + [f"x-stainless-{name}" for name in _STAINLESS]
)
_LOCAL_DOMAINS = (".localhost", ".local", ".internal")


class HostGuard:
    """Refuse requests for hosts that this machine is not, when *is_loopback* says only this machine can connect."""

    def __init__(self, app: ASGIApp, *, is_loopback: bool) -> None:
        self._app = app
        self._is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here."""
        if scope["type"] == "http" and self._is_loopback:
            host = _without_port(Headers(scope=scope).get("host", ""))
            if not is_allowed_host(host):
                return await Response(status_code=403)(scope, receive, send)
            if scope["method"] == "OPTIONS" and not _is_address(host):
                return await Response(status_code=204)(scope, receive, send)
        return await self._app(scope, receive, send)


class OriginGuard:
    """Answer browsers' questions about origins, and refuse the origins that match none of *patterns*."""

    def __init__(self, app: ASGIApp, *, patterns: Sequence[str]) -> None:
        self._app = app
        self._allows_all = "*" in patterns
        self._allowed = re.compile("|".join(map(_pattern, patterns)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the headers that a browser looks for, or answer it here."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == headers.get("host"):
            return await self._app(scope, receive, send)
        if not self._allows_all and not self._allowed.fullmatch(origin):
            return await Response(status_code=403)(scope, receive, send)
        if scope["method"] == "OPTIONS":
            response = Response(status_code=204)
            response.headers.update(
                {
                    "Access-Control-Allow-Methods": METHODS,
                    "Access-Control-Allow-Headers": HEADERS,
                    "Access-Control-Max-Age": str(MAX_AGE_S),
                }
            )
            self._mark(response.headers, origin)
            return await response(scope, receive, send)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._mark(MutableHeaders(scope=message), origin)
            await send(message)

        return await self._app(scope, receive, send_marked)

    def _mark(self, headers: MutableHeaders, origin: str) -> None:
        headers["Access-Control-Allow-Origin"] = "*" if self._allows_all else origin
        if not self._allows_all:
            headers.add_vary_header("Origin")


def _pattern(origin: str) -> str:
    """The regular expression of one setting: ``http://localhost:*`` and no host that only begins so."""
    escaped = re.escape(origin).replace(r"\*", "[^/@]*")
    return re.sub(r":\[\^/@\]\*$", r":[0-9]{1,5}", escaped)


def is_allowed_host(host: str) -> bool:
    """Whether *host* (no port) can only mean this machine or its private network."""
    host = host.lower()
    if host in ("", "localhost", socket.gethostname().lower()) or host.endswith(_LOCAL_DOMAINS):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified or str(address) in _own_addresses()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1)
def _own_addresses() -> frozenset[str]:
    """Addresses of this machine's interfaces."""
    import psutil

    entries = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    return frozenset(entry.address.partition("%")[0] for entry in entries)


def _without_port(host: str) -> str:
    """``[::1]:11434`` -> ``::1``, ``localhost:11434`` -> ``localhost``."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]

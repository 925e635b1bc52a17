"""Limits of an HTTP connection: uvicorn's protocol over httptools, with sizes and deadlines that nobody can stretch.

    phase        until                          at most                                       else
    -----------  -----------------------------  --------------------------------------------  ----------------------
    connected    the first byte of a request    ``HEAD_S``                                    closed
    head         the empty line behind it       ``HEAD_S``, ``MAX_HEAD_BYTES``                408, 431
    body         its last byte                  ``BODY_BYTES`` come in every ``BODY_S``       408
                 beside it, of its chunks       ``MAX_HEAD_BYTES``                            431
    answering    the answer's last byte         no limit; pacing is the engine's business
    idle         the next request               ``KEEP_ALIVE_S``, by uvicorn                  closed

The server looks at the deadlines once a second; a request pays for a look at the clock. When there are more than
files allow, the connection that has waited longest between two requests, or in the middle of a head, makes room for the
new one, with 503 if a request may be on its way; where all are busy the new one gets 503. How many are open at the same
time, those that are refused included, is the business of :mod:`ollama_zmq.server.acceptor`.

HTTP/1.0 is answered in HTTP/1.0: the body is what comes until the connection closes, without chunks. A request to
HTTP/1.1 has one Host; that of an absolute URI goes before it (RFC 9112, section 3.2). Bytes above 0x7E in a URL are
refused, as the RFC says and llhttp does; Go takes them. An offer of another protocol (``Upgrade: h2c``, which Java's
client and ``curl --http2`` send with every request) is not taken up.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Iterable
from typing import Any

import httptools
import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

log = structlog.get_logger()

HEAD_S = 10.0
BODY_S = 60.0  # what is uploaded may come out of a pipe that pauses
BODY_BYTES = 5_000
KEEP_ALIVE_S = 120  # longer than clients keep a connection that they do not use, so that they close it and not we
MAX_HEAD_BYTES = 64 << 10
CHUNK_HEAD_BYTES = 16  # what a chunk may take beside its bytes, and twice these: as Go's net/http counts
REFUSAL_S = 2.0


class ConnectionPhase(enum.Enum):
    """Where a connection is; see the head of this file."""

    CONNECTED = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()
    IDLE = enum.auto()
    REFUSED = enum.auto()


class Refusal(msgspec.Struct, frozen=True):
    """An answer to what is no request that we take."""

    status: int
    error: str


MALFORMED = Refusal(400, "malformed HTTP request")
BAD_URL = Refusal(400, "malformed URL: it begins with /, and bytes above 0x7E are written as %XX")
HEAD_TOO_LARGE = Refusal(431, f"the head of the request is larger than {MAX_HEAD_BYTES} bytes")
HEAD_TOO_SLOW = Refusal(408, f"the head of the request was not complete after {HEAD_S:.0f} s")
NOT_BODY = Refusal(431, f"more than {MAX_HEAD_BYTES} bytes of chunk extensions or trailers in the request")
BODY_TOO_SLOW = Refusal(408, f"the body of the request came slower than {BODY_BYTES} bytes in {BODY_S:.0f} s")
NO_HOST = Refusal(400, "missing required Host header")
TWO_HOSTS = Refusal(400, "too many Host headers")
NO_PROXY = Refusal(405, "CONNECT: this server is no proxy")
TOO_MANY = Refusal(503, "too many connections: this process may open no more files; raise ulimit -n")


class HttpConnection(HttpToolsProtocol):
    """One client's connection.

    Attributes:
        phase: what is waited for.
        since: when the phase began, on the loop's clock.
        deadline: when :meth:`expire` is due, on the loop's clock; inf while there is no limit.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limit_concurrency = None  # uvicorn's check of it comes after the head; ours is in connection_made
        self._received = 0
        self._not_body = 0
        self._refusal: Refusal | None = None
        self._enter(ConnectionPhase.CONNECTED, HEAD_S)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, in the place of one that waits if need be, or refuse it."""
        super().connection_made(transport)
        limit = self.config.limit_concurrency
        if limit is None or len(self.connections) <= limit:
            return
        longest = longest_waiting(other for other in self.connections if isinstance(other, HttpConnection))
        if longest is not None and longest is not self:
            longest.make_room()
        else:
            self._refuse_once_it_speaks()

    def make_room(self) -> None:
        """End, with words where a request may be on its way."""
        log.debug("connection.closed", reason="room for another", phase=self.phase.name.lower())
        if self.phase is ConnectionPhase.HEAD:
            self._refuse(TOO_MANY)
        elif self.phase is ConnectionPhase.CONNECTED and self.loop.time() - self.since < REFUSAL_S:
            self._refuse_once_it_speaks()
        else:
            self.transport.close()

    def _refuse_once_it_speaks(self) -> None:
        self._refusal = TOO_MANY
        self._enter(ConnectionPhase.REFUSED, REFUSAL_S)

    def data_received(self, data: bytes) -> None:
        """Parse *data* within the limits."""
        if (
            self.phase is ConnectionPhase.REFUSED
        ):  # read, so that closing does not throw away the answer with what was not read
            return self._refuse(self._refusal or MALFORMED)
        self._unset_keepalive_if_required()
        self._not_body += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserInvalidURLError:
            return self._refuse(self._refusal or BAD_URL)
        except httptools.HttpParserError:
            return self._refuse(self._refusal or MALFORMED)
        self._received += len(data)  # since the phase began, or a read more
        if self.phase is ConnectionPhase.HEAD and self._received > MAX_HEAD_BYTES:
            self._refuse(HEAD_TOO_LARGE)
        elif self.phase is ConnectionPhase.BODY and self._not_body > MAX_HEAD_BYTES:
            self._refuse(NOT_BODY)
        return None

    def _parse(self, data: bytes) -> None:
        """Parse *data*. Of a request that offers another protocol the head is parsed again without the offer.

        The parser takes whatever follows an offer for the other protocol, which may be the request's body.
        """
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_offer() + data[offer.args[0] :]
            else:
                return

    def _head_without_offer(self) -> bytes:
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        kept = [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([first, *kept, b"", b""])

    def on_message_begin(self) -> None:
        """The first byte of a request is there."""
        super().on_message_begin()
        self._enter(ConnectionPhase.HEAD, HEAD_S)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a line of the head; those behind a body in chunks come too late to count."""
        if self.phase is ConnectionPhase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the head and begin to answer."""
        self._refusal = self._refusal_of_head()
        if self._refusal is not None:
            raise ValueError(self._refusal.error)  # stops the parser
        if self.parser.should_upgrade():
            return  # it is parsed again
        super().on_headers_complete()
        self._not_body = 0
        self._enter(ConnectionPhase.BODY, BODY_S)

    def on_body(self, body: bytes) -> None:
        """A piece of the body is there, which pays for what frames it."""
        self._not_body = max(0, self._not_body - CHUNK_HEAD_BYTES - 3 * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._enter(ConnectionPhase.IDLE if self.cycle.response_complete else ConnectionPhase.ANSWERING)

    def on_response_complete(self) -> None:
        """The answer is out; the next request may have begun already."""
        super().on_response_complete()
        if self.phase is ConnectionPhase.ANSWERING and not self.pipeline and self.cycle.response_complete:
            self._enter(ConnectionPhase.IDLE)
        elif self.phase is ConnectionPhase.HEAD:
            self._enter(ConnectionPhase.HEAD, HEAD_S)

    def expire(self, now: float) -> None:
        """Do what the table says when the deadline of the phase is over at *now*."""
        if now < self.deadline or self.transport.is_closing():
            return
        if self.phase is ConnectionPhase.HEAD:
            if self.cycle is None or self.cycle.response_complete:
                self._refuse(HEAD_TOO_SLOW)
        elif self.phase is ConnectionPhase.BODY:
            if self._received >= BODY_BYTES or self.flow.read_paused:
                self._enter(ConnectionPhase.BODY, BODY_S)
            else:
                self._refuse(BODY_TOO_SLOW)
        else:
            self.transport.close()

    @property
    def is_waiting(self) -> bool:
        """Whether the client has to do the next step, so that closing costs it no answer."""
        return (
            self.phase in (ConnectionPhase.CONNECTED, ConnectionPhase.HEAD, ConnectionPhase.IDLE)
            and not self.transport.is_closing()
        )

    def _enter(self, phase: ConnectionPhase, limit_s: float = math.inf) -> None:
        self.phase, self._received = phase, 0
        self.since = self.loop.time()
        self.deadline = self.since + limit_s

    def _refusal_of_head(self) -> Refusal | None:
        """Why this head is refused. The host of an absolute URI becomes its Host."""
        if self.parser.get_method() == b"CONNECT":
            return NO_PROXY
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            return HEAD_TOO_LARGE
        n_hosts = sum(name == b"host" for name, _ in self.headers)
        if n_hosts > 1:
            return TWO_HOSTS
        if n_hosts == 0 and self.parser.get_http_version() != "1.0":
            return NO_HOST
        if not self.url.startswith((b"/", b"*")):
            target = httptools.parse_url(self.url)
            port = b":%d" % target.port if target.port else b""
            self.headers[:] = [header for header in self.headers if header[0] != b"host"]
            self.headers.append((b"host", (target.host or b"") + port))
        return None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.scope["http_version"] == "1.0":
            app = _unframed(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer *refusal*, unless another answer has begun, and close."""
        if self.transport.is_closing():
            return
        log.debug("connection.refused", status=refusal.status, reason=refusal.error)
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = msgspec.json.encode({"error": refusal.error})
            head = b"content-type: application/json; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[refusal.status] + head % len(body) + body)
        self.transport.close()


def longest_waiting(connections: Iterable[HttpConnection]) -> HttpConnection | None:
    """The one of *connections* that nobody is answering and that has been so for longest, if there is one."""
    waiting = (other for other in connections if other.is_waiting)
    return min(waiting, key=lambda other: other.since, default=None)


def _unframed(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """*app*, answering over *cycle* in HTTP/1.0: neither chunks nor, for a stream, a length."""
    cycle.transport = _Http10Transport(cycle.transport)  # type: ignore[assignment]

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                cycle.chunked_encoding = False
            elif scope["method"] != "HEAD":
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unframed)

    return answer


class _Http10Transport:
    """What an answer uses of a transport, with the version in its first line changed."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.close, self.is_closing = transport.close, transport.is_closing
        self._has_begun = False

    def write(self, data: bytes) -> None:
        if not self._has_begun:
            data, self._has_begun = b"HTTP/1.0" + data[len(b"HTTP/1.1") :], True
        self._transport.write(data)

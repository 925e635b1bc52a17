"""What the endpoints work with, made once per server and found through ``request.app.state.services``."""

from __future__ import annotations

import asyncio
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from starlette.requests import ClientDisconnect, Request

from ollama_zmq.config import Config
from ollama_zmq.errors import CapacityError, OllamaZmqError, RequestError
from ollama_zmq.server.decoding import T, decode
from ollama_zmq.server.errors import BodyTooLarge, RequestCanceled
from ollama_zmq.server.generation import Generations
from ollama_zmq.server.rendering import Renderers
from ollama_zmq.server.scheduler import ModelScheduler
from ollama_zmq.store.models import Store

if TYPE_CHECKING:
    from ollama_zmq.bus.broker import Broker

log = structlog.get_logger()

MAX_BODY_BYTES = 64 << 20
SMALL_BODY_BYTES = 64 << 10  # decoded on the event loop in some 0.1 ms; larger ones must not hold up other clients


@dataclass(frozen=True, slots=True)
class Services:
    """The store on disk, the broker below, and what this server keeps track of."""

    config: Config
    store: Store
    broker: Broker
    scheduler: ModelScheduler
    generations: Generations
    renderers: Renderers = field(default_factory=Renderers)

    @classmethod
    def of(cls, config: Config, store: Store, broker: Broker) -> Services:
        """Put them together around a *broker* that runs."""
        scheduler = ModelScheduler(
            broker,
            keep_alive_s=config.keep_alive_s,
            max_queue=config.max_queue,
            max_loaded=config.max_loaded_models,
        )
        return cls(config, store, broker, scheduler, Generations(broker))

    def stop(self) -> None:
        """End running generations with an error, so that their streams end; called before the server closes."""
        self.generations.stop(CapacityError("the server is stopping"))


def open_services(config: Config) -> Services:
    """The services of a server of its own: the store tidied, the broker running.

    Raises:
        OllamaZmqError: this machine cannot run a broker, and why.
    """
    from ollama_zmq.bus.addresses import parse_servers
    from ollama_zmq.bus.broker import Broker

    store = Store(config.models, keeps_blobs=config.no_prune)
    broker = Broker(
        find_blob=lambda blob: _blob_path(store, blob),
        own_ports=frozenset({config.host.port}),
        load_timeout_s=config.load_timeout_s,
    )
    broker.start()
    broker.look(parse_servers(config.rpc_servers))
    _prune(store)
    return Services.of(config, store, broker)


def _blob_path(store: Store, blob: str) -> Path | None:
    with suppress(RequestError):
        path = store.blobs.path(blob)
        return path if path.is_file() else None
    return None


def _prune(store: Store) -> None:
    """Delete what no model needs. A store that cannot be tidied still serves."""
    try:
        removed = store.prune(time.time())
    except (OSError, OllamaZmqError) as error:
        log.warning("store.not_pruned", error=str(error))
        return
    if removed:
        log.info("store.pruned", files=len(removed))


def services_of(request: Request) -> Services:
    """The services of the application that serves *request*; they are there once an endpoint runs."""
    services: Services = request.app.state.services.result()
    return services


async def body_as(request: Request, kind: type[T]) -> T:
    """The JSON body of *request*.

    Raises:
        RequestError: it is missing, no JSON, too large, or a field has the wrong type.
        RequestCanceled: the client left before its body was complete.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise BodyTooLarge(f"request body larger than {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        log.debug("request.abandoned", path=request.url.path, received=len(body))
        raise RequestCanceled("request canceled") from None
    plain = unpacked(bytes(body), request.headers.get("content-encoding", ""))
    if len(plain) < SMALL_BODY_BYTES:
        return decode(plain, kind)
    return await asyncio.to_thread(decode, plain, kind)


def unpacked(body: bytes, encoding: str) -> bytes:
    """*body* without its Content-Encoding, which is gzip or none.

    Raises:
        RequestError: another encoding, or bytes that are no gzip.
        BodyTooLarge: it would be larger than any body may be.
    """
    if encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise RequestError(f"Content-Encoding {encoding[:99]!r}: send gzip or none")
    gzip = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        plain = gzip.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise RequestError(f"the request body is no gzip, as its Content-Encoding says: {error}") from None
    if len(plain) > MAX_BODY_BYTES:
        raise BodyTooLarge(f"request body larger than {MAX_BODY_BYTES} bytes")
    if not gzip.eof:
        raise RequestError("the request body is cut: its gzip has no end")
    return plain

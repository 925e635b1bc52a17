"""What the endpoints work with, made once per server and found at ``request.app.state.services``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from ollama_zmq.config import Config
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.server.errors import BodyTooLarge
from ollama_zmq.server.generation import Generations
from ollama_zmq.server.scheduler import Scheduler
from ollama_zmq.server.schema import T, decode
from ollama_zmq.store.models import Store

if TYPE_CHECKING:
    from ollama_zmq.bus.broker import Broker

MAX_BODY_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Services:
    """The store on disk, the broker below, and what this server keeps track of."""

    config: Config
    store: Store
    broker: Broker
    scheduler: Scheduler
    generations: Generations

    @classmethod
    def of(cls, config: Config, store: Store, broker: Broker) -> Services:
        """Build them. *broker* is started and closed by the application."""
        scheduler = Scheduler(broker, keep_alive_s=config.keep_alive_s, max_queue=config.max_queue)
        return cls(config, store, broker, scheduler, Generations(broker))

    def stop(self) -> None:
        """End running generations with an error, so that their streams end; called before the server closes."""
        self.generations.stop(OllamaZmqError("the server is stopping"))


def services_of(request: Request) -> Services:
    """The services of the application that serves *request*."""
    services: Services = request.app.state.services
    return services


async def body_as(request: Request, kind: type[T]) -> T:
    """The JSON body of *request*.

    Raises:
        RequestError: it is missing, no JSON, too large, or a field has the wrong type.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"request body larger than {MAX_BODY_BYTES} bytes")
    return decode(bytes(body), kind)

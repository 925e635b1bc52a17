"""The application over a fake broker, called through ASGI, with a store that holds one tiny model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from ollama_zmq.config import Config
from ollama_zmq.server.app import make_app
from ollama_zmq.server.services import Services
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store
from tests.models_tiny import write_tiny_llama
from tests.server.fake_broker import FakeBroker

SERVERS = "10.0.0.1:50052,10.0.0.2:50053"


@dataclass(slots=True)
class ServerUnderTest:
    """The application, the broker and the store below it, and a client of it."""

    broker: FakeBroker
    store: Store
    services: Services
    http: httpx.AsyncClient

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body)

    async def lines(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The lines of an answer that must have begun well, without the fields that change from run to run."""
        response = await self.post(path, **body)
        assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
        return [plain(json.loads(line)) for line in response.text.splitlines()]


def plain(chunk: dict[str, Any]) -> dict[str, Any]:
    """*chunk* without its time of making and the durations that a clock measured."""
    assert chunk.pop("created_at").endswith("Z")
    for name in ("total_duration", "load_duration"):
        if name in chunk:
            assert chunk.pop(name) > 0
    return chunk


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the models ``tiny`` and ``tuned``. Copied by tests that change it."""
    root = tmp_path_factory.mktemp("store")
    store = Store(root)
    blob = store.blobs.add_file(write_tiny_llama(root / "tiny.gguf", n_layers=1))
    store.create("tiny", Recipe(files={"tiny.gguf": blob.digest}))
    (root / "tiny.gguf").unlink()
    parameters = {"num_ctx": 64, "temperature": 0.5, "stop": ["END"], "rpc_servers": "10.9.9.9:1"}
    store.create("tuned", Recipe(from_="tiny", system="Be brief.", parameters=parameters))
    return root


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Store:
    """A store of one's own with the models of ``tiny_store``."""
    import shutil

    shutil.copytree(tiny_store, tmp_path / "models")
    return Store(tmp_path / "models")


@pytest.fixture
def broker() -> FakeBroker:
    return FakeBroker()


@asynccontextmanager
async def site(broker: FakeBroker, store: Store, **settings: Any) -> AsyncIterator[ServerUnderTest]:
    """A running application and a client of it."""
    config = replace(Config(), **{"models": store.root, "rpc_allow": "10.0.0.0/8"} | settings)
    services = Services.of(config, store, broker)  # type: ignore[arg-type]
    app = make_app(config, lambda: services)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield ServerUnderTest(broker, store, services, http)


Scenario = Callable[[ServerUnderTest], Awaitable[None]]


@pytest.fixture
def on_site(broker: FakeBroker, store: Store) -> Callable[..., None]:
    """Runs a coroutine function on a server: ``on_site(scenario, **settings)``."""

    def run(scenario: Scenario, **settings: Any) -> None:
        async def main() -> None:
            async with site(broker, store, **settings) as here:
                await asyncio.wait_for(scenario(here), timeout=60)

        asyncio.run(main())

    return run

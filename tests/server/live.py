"""A real server on a free port, in a thread, over the fake broker: for clients that bring their own HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ollama_zmq.config import Config
from ollama_zmq.server.app import make_app
from ollama_zmq.server.run import Server, http_settings
from ollama_zmq.server.services import Services
from ollama_zmq.store.models import Store
from tests.server.fake_broker import FakeBroker


@contextmanager
def live_server(broker: FakeBroker, store: Store) -> Iterator[str]:
    """The URL of a server that runs until the block ends."""
    services = Services.of(replace(Config(), models=store.root), store, broker)  # type: ignore[arg-type]
    app = make_app(services.config, lambda: services)
    server = Server(http_settings(app))
    server.config.timeout_graceful_shutdown = 1
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()

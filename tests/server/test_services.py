"""What the environment says reaches the broker; what a server opens before it serves."""

from dataclasses import replace

import pytest
import structlog

from ollama_zmq.bus import broker
from ollama_zmq.config import Config
from ollama_zmq.errors import StorageError
from ollama_zmq.server.services import open_services


@pytest.fixture
def given(monkeypatch):
    """The arguments of the broker that is started."""
    arguments = {}

    class Recorder:
        def __init__(self, **given):
            arguments.update(given)

        def start(self):
            pass

        def look(self, listed):
            arguments["looked at"] = listed

    monkeypatch.setattr(broker, "Broker", Recorder)
    return arguments


def test_the_broker_has_the_load_timeout_and_the_port_of_the_configuration(given, tmp_path):
    open_services(replace(Config(), models=tmp_path, load_timeout_s=7.0))
    assert (given["load_timeout_s"], given["own_ports"]) == (7.0, {11434})


def test_a_server_looks_at_its_workers_when_it_starts(given, tmp_path):
    open_services(replace(Config(), models=tmp_path, rpc_servers="box, 10.0.0.1:50053"))
    assert given["looked at"] == ("box:50052", "10.0.0.1:50053")


def test_a_store_that_cannot_be_tidied_still_serves(given, store, monkeypatch):
    def refuse(self, now):
        raise StorageError("/models/blobs cannot be changed: read-only file system")

    monkeypatch.setattr("ollama_zmq.store.models.Store.prune", refuse)
    with structlog.testing.capture_logs() as logs:
        services = open_services(replace(Config(), models=store.root))
    assert len(services.store.list()) == 2
    assert [(log["event"], log["error"]) for log in logs] == [
        ("store.not_pruned", "/models/blobs cannot be changed: read-only file system")
    ]

"""What the environment says reaches the broker."""

from dataclasses import replace

from ollama_zmq.bus import broker
from ollama_zmq.config import Config
from ollama_zmq.server.services import open_services


def test_the_broker_has_the_load_timeout_and_the_port_of_the_configuration(monkeypatch, tmp_path):
    given = {}

    class Recorder:
        def __init__(self, **arguments):
            given.update(arguments)

        def start(self):
            pass

    monkeypatch.setattr(broker, "Broker", Recorder)
    open_services(replace(Config(), models=tmp_path, load_timeout_s=7.0))
    assert (given["load_timeout_s"], given["own_ports"]) == (7.0, {11434})

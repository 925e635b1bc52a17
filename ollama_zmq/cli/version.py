"""``ollama --version``: the version of Ollama whose interface the server keeps, and our own."""

from __future__ import annotations

from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.printable import printable_line
from ollama_zmq.version import VERSION


def show_version() -> None:
    """Print what runs."""
    server = ""
    try:
        with Client() as client:
            server = client.version()
    except OllamaZmqError:
        say("Warning: could not connect to a running Ollama instance")
    if server:
        say(f"ollama version is {printable_line(server)}")
    say(f"ollama-zmq version is {VERSION}")

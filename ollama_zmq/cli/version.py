"""``ollama --version``: the server's version, and ours where they differ."""

from __future__ import annotations

from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.errors import OllamaZmqError
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
        say(f"ollama version is {server}")
    if server != VERSION:
        say(f"Warning: client version is {VERSION}")

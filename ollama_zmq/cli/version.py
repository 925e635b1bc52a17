"""``ollama --version``: the server's version, and ours where they differ."""

from __future__ import annotations

import click

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
        click.echo("Warning: could not connect to a running Ollama instance")
    if server:
        click.echo(f"ollama version is {server}")
    if server != VERSION:
        click.echo(f"Warning: client version is {VERSION}")

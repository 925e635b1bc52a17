"""``ollama stop``: unload a model."""

from __future__ import annotations

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.client import Client
from ollama_zmq.errors import ModelNotFound


@click.command(cls=Command, short_help="Stop a running model")
@click.argument("model")
def stop(model: str) -> None:
    """Unload MODEL from memory, after the requests that run on it."""
    with Client() as client:
        try:
            client.unload(model)
        except ModelNotFound:
            raise ModelNotFound(f'couldn\'t find model "{model}" to stop') from None

"""``ollama cp``: a second name for a model."""

from __future__ import annotations

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client


@click.command(cls=Command, short_help="Copy a model")
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Give SOURCE the second name DESTINATION."""
    with Client() as client:
        client.copy(source, destination)
    say(f"copied '{source}' to '{destination}'")

"""``ollama cp``: a second name for a model."""

from __future__ import annotations

import click

from ollama_zmq.client import Client


@click.command(short_help="Copy a model")
@click.argument("source")
@click.argument("destination")
def cp(source: str, destination: str) -> None:
    """Give SOURCE the second name DESTINATION."""
    with Client() as client:
        client.copy(source, destination)
    click.echo(f"copied '{source}' to '{destination}'")

"""``ollama rm``: remove models."""

from __future__ import annotations

import click

from ollama_zmq.client import Client


@click.command(short_help="Remove a model")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
def rm(models: tuple[str, ...]) -> None:
    """Remove each MODEL from the server's disk."""
    with Client() as client:
        for model in models:
            client.delete(model)
            click.echo(f"deleted '{model}'")

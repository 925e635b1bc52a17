"""``ollama rm``: remove models."""

from __future__ import annotations

from contextlib import suppress

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.errors import ModelNotFound, OllamaZmqError, Unreachable


@click.command(cls=Command, short_help="Remove a model")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
def rm(models: tuple[str, ...]) -> None:
    """Remove each MODEL from the server's disk, and from memory first."""
    with Client() as client:
        for model in models:
            _stop(client, model)
            client.delete(model)
            say(f"deleted '{model}'")


def _stop(client: Client, model: str) -> None:
    """Unload *model*. What cannot be shown or loaded can still be removed, so a refusal is a warning."""
    try:
        with suppress(ModelNotFound):
            client.unload(model)
    except Unreachable:
        raise
    except OllamaZmqError as error:
        say(f"Warning: unable to stop model '{model}': {error.message}", err=True)

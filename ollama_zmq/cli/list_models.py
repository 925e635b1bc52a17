"""``ollama list``: the models on the server's disk."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.tables import table
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.units import human_bytes, human_time_of


@click.command("list", cls=Command, short_help="List models")
@click.argument("prefixes", nargs=-1, metavar="[PREFIX]")
def list_models(prefixes: tuple[str, ...]) -> None:
    """List the models whose names begin with PREFIX, the newest first."""
    with Client() as client:
        say(models_table(client, *prefixes[:1]))


def models_table(client: Client, prefix: str = "") -> str:
    """The table of models."""
    now = datetime.now(UTC)
    rows = [
        (
            model["name"],
            model["digest"][:12],
            human_bytes(model["size"]),
            human_time_of(model["modified_at"], now),
        )
        for model in client.tags()
        if model["name"].lower().startswith(prefix.lower())
    ]
    return table(("NAME", "ID", "SIZE", "MODIFIED"), rows)

"""``ollama list``: the models on the server's disk."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from ollama_zmq.cli.tables import table
from ollama_zmq.client import Client
from ollama_zmq.units import human_bytes, human_time


@click.command("list", short_help="List models")
@click.argument("prefix", default="")
def list_models(prefix: str) -> None:
    """List the models whose names begin with PREFIX, the newest first."""
    with Client() as client:
        click.echo(models_table(client, prefix))


def models_table(client: Client, prefix: str = "") -> str:
    """The table of models."""
    now = datetime.now(UTC)
    rows = [
        (
            model["name"],
            model["digest"][:12],
            human_bytes(model["size"]),
            human_time(datetime.fromisoformat(model["modified_at"]), now),
        )
        for model in client.tags()
        if model["name"].lower().startswith(prefix.lower())
    ]
    return table(("NAME", "ID", "SIZE", "MODIFIED"), rows)

"""``ollama pull`` and ``ollama push``: a model from a registry, and to one, by the server, which tells its progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.printable import printable_line


@click.command(cls=Command, short_help="Pull a model from a registry")
@click.argument("model")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
def pull(model: str, insecure: bool) -> None:
    """Pull MODEL from a registry."""
    with Client() as client:
        show_statuses(client.pull(model, insecure=insecure))


@click.command(cls=Command, short_help="Push a model to a registry")
@click.argument("model")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
def push(model: str, insecure: bool) -> None:
    """Push MODEL to a registry."""
    with Client() as client:
        show_statuses(client.push(model, insecure=insecure))


def show_statuses(chunks: Iterable[dict[str, Any]]) -> None:
    """Print each status of a stream once, on stderr."""
    shown = ""
    for chunk in chunks:
        status = printable_line(str(chunk.get("status", "")))
        if status and status != shown:
            say(status, err=True)
            shown = status

"""``ollama serve``: the HTTP server and everything below it."""

from __future__ import annotations

import os

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.config import VARIABLES, Config


@click.command(cls=Command, short_help="Start ollama", environment=VARIABLES)
def serve() -> None:
    """Start the server. Ctrl-C stops it."""
    from ollama_zmq import log
    from ollama_zmq.server.run import serve as serve_forever

    log.configure()
    serve_forever(Config.from_environment(os.environ))

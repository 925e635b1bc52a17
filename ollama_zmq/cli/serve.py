"""``ollama serve``: the HTTP server and everything below it."""

from __future__ import annotations

import os
import tempfile
from ipaddress import ip_network
from pathlib import Path

import click

from ollama_zmq.cli.command import Command
from ollama_zmq.config import VARIABLES, Config
from ollama_zmq.errors import RequestError


@click.command(cls=Command, short_help="Start ollama", environment=VARIABLES)
def serve() -> None:
    """Start the server. Ctrl-C stops it."""
    from ollama_zmq import log

    log.configure()
    config = Config.from_environment(os.environ)
    check(config)

    from ollama_zmq.server.run import serve as serve_forever

    serve_forever(config)


def check(config: Config) -> None:
    """Refuse to start with settings that every request would stumble over; the folder of models is there afterwards.

    Raises:
        RequestError: it names the variable, its value, and what is wrong with it.
    """
    from ollama_zmq.bus.addresses import parse_servers

    config.require("OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_RPC_MISSING")
    try:
        parse_servers(config.rpc_servers)
    except RequestError as error:
        raise RequestError(f"OLLAMA_RPC_SERVERS: {error.message}") from None
    for entry in filter(None, map(str.strip, config.rpc_allow.split(","))):
        _check_network(entry)
    _check_models(config.models)


def _check_network(entry: str) -> None:
    """An entry of ``OLLAMA_RPC_ALLOW`` with a slash has to be a network, else it would allow nobody and say nothing."""
    if "/" in entry:
        try:
            ip_network(entry, strict=False)
        except ValueError:
            raise RequestError(f"OLLAMA_RPC_ALLOW: {entry!r} is no network, such as 10.0.0.0/24") from None


def _check_models(folder: Path) -> None:
    import structlog

    try:
        folder.mkdir(parents=True, exist_ok=True)
        list(folder.iterdir())
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise RequestError(f"OLLAMA_MODELS: {folder}: {reason}; it has to be a folder that can be read") from None
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        log = structlog.get_logger()
        log.warning("store.read_only", models_dir=str(folder))

"""``ollama ps``: the models in memory, and with ``-v`` where their layers are."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from ollama_zmq.cli.cluster import speed_line
from ollama_zmq.cli.command import Command
from ollama_zmq.cli.tables import columns, paragraph, table
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.printable import printable_line
from ollama_zmq.units import human_bytes, human_time_of


@click.command(cls=Command, short_help="List running models")
@click.argument("prefixes", nargs=-1, metavar="[PREFIX]")
@click.option("-v", "--verbose", is_flag=True, help="Show each worker with its layers")
def ps(prefixes: tuple[str, ...], verbose: bool) -> None:
    """List the models in memory whose names begin with PREFIX."""
    prefix, now = "".join(prefixes[:1]), datetime.now(UTC)
    with Client() as client:
        models = [model for model in client.ps() if model["name"].lower().startswith(prefix.lower())]
        rows = [
            (
                model["name"],
                model["digest"][:12],
                human_bytes(model["size"]),
                processor(model["size"], model["size_vram"]),
                str(model["context_length"]),
                until(model["expires_at"], now),
            )
            for model in models
        ]
        say(table(("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"), rows))
        if verbose and models:
            say("\n".join(worker_lines(client.cluster())))


def processor(size: int, size_vram: int) -> str:
    """Where a model is, as shares of CPU and GPU."""
    if size_vram == 0:
        return "100% CPU"
    if size_vram == size:
        return "100% GPU"
    if size_vram > size or size == 0:
        return "Unknown"
    cpu_percent = round((size - size_vram) / size * 100)
    return f"{cpu_percent}%/{100 - cpu_percent}% CPU/GPU"


def until(expires_at: str, now: datetime) -> str:
    """When a model will be unloaded; in the past means that it is about to be."""
    shown = human_time_of(expires_at, now)
    return "Stopping..." if shown.endswith(" ago") else shown


def worker_lines(cluster: dict[str, Any]) -> list[str]:
    """One line per worker that holds a part of a model: address, layers, bytes; each model's speed; who is missing."""
    workers = [
        ("", worker["address"], worker["layers"] or "-", human_bytes(worker["held_bytes"]))
        for worker in cluster["workers"]
        if worker["layers"] or worker["held_bytes"]
    ]
    speeds = [line for model in cluster["models"] for line in (model["name"], f"    {speed_line(model)}")]
    missing = [paragraph(f"missing: {why}", "    ") for model in cluster["models"] for why in model.get("missing", [])]
    return [*columns(workers, shortens=True), *map(printable_line, speeds), *missing]

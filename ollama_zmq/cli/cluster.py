"""``ollama cluster``: the workers, what they hold, and where the time of a step goes."""

from __future__ import annotations

from typing import Any

import click

from ollama_zmq.cli.tables import table
from ollama_zmq.client import Client
from ollama_zmq.units import human_bytes

WORKER_COLUMNS = (
    "WORKER",
    "STATUS",
    "LAYERS",
    "HELD",
    "BUDGET",
    "RTT",
    "LINK",
    "DECODE",
    "PREFILL",
    "VERSION",
    "DEVICE",
)
STAGE_COLUMNS = ("STAGE", "WORKER", "COMPUTE p50/p95", "WIRE p50/p95", "QUEUE p50/p95", "STEPS")


@click.command(short_help="Show the workers, their layers and latencies")
def cluster() -> None:
    """Show the server's workers, the layers and memory on each, their speeds, and the latency of each stage."""
    with Client() as client:
        state = client.cluster()
    click.echo(table(WORKER_COLUMNS, [worker_row(worker) for worker in state["workers"]]))
    for worker in state["workers"]:
        if worker["detail"]:
            click.echo(f"\n{worker['address']}: {worker['detail']}")
    for model in state["models"]:
        click.echo(f"\n{model_line(model)}\n")
        click.echo(table(STAGE_COLUMNS, [stage_row(stage) for stage in model["stages"]]))
        for note in model["notes"]:
            click.echo(f"\nnote: {note}")


def model_line(model: dict[str, Any]) -> str:
    """How far a model is, and what it takes."""
    sent = f", {human_bytes(model['sent_bytes'])} of {human_bytes(model['bytes_to_send'])} sent"
    return f"{model['name']}: {model['status']}, {human_bytes(model['nbytes'])}{sent if model['bytes_to_send'] else ''}"


def worker_row(worker: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of workers; what was not measured is ``-``."""
    return (
        worker["address"],
        worker["status"],
        worker["layers"] or "-",
        human_bytes(worker["held_bytes"]),
        _known(worker["memory_budget"], human_bytes(worker["memory_budget"])),
        _known(worker["rtt_us"], f"{worker['rtt_us']:.0f} us"),
        _known(worker["bandwidth_bytes_per_s"], f"{human_bytes(round(worker['bandwidth_bytes_per_s']))}/s"),
        _known(worker["decode_bytes_per_s"], f"{human_bytes(round(worker['decode_bytes_per_s']))}/s"),
        _known(worker["prefill_macs_per_s"], f"{worker['prefill_macs_per_s'] / 1e9:.1f} GMAC/s"),
        worker["version"] or "-",
        ", ".join(worker["devices"]) or "-",
    )


def stage_row(stage: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of stages; latencies in microseconds."""
    layers = f" {stage['first_layer']}..{stage['last_layer']}" if stage["first_layer"] >= 0 else ""
    latency = stage.get("latency") or {}
    times = tuple(_percentiles(latency.get(part)) for part in ("compute", "wire", "queue"))
    return (f"{stage['part']}{layers}", stage["worker"], *times, str(latency.get("steps", 0)))


def _known(value: float, text: str) -> str:
    return text if value else "-"


def _percentiles(part: dict[str, float] | None) -> str:
    return "-" if part is None else f"{part['p50_us']:.0f}/{part['p95_us']:.0f} us"

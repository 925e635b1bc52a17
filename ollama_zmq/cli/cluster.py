"""``ollama cluster``: the workers, what they hold, and where the time of a step goes."""

from __future__ import annotations

from typing import Any

import click

from ollama_zmq.cli.command import Command, Group
from ollama_zmq.cli.tables import table
from ollama_zmq.cli.terminal import say
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
STAGE_COLUMNS = ("STAGE", "WORKER", "PREDICTED", "COMPUTE p50/p95", "WIRE p50/p95", "QUEUE p50/p95", "STEPS")


PLAN_COLUMNS = ("", "PLAN", "DECODE", "PREFILL", "REMARKS")
PLANNED_COLUMNS = ("PLAN", "STAGE", "WORKER", "WEIGHTS", "KV CACHE", "SCRATCH", "MEMORY", "TOKEN")


@click.group(cls=Group, invoke_without_command=True, short_help="Show the workers, their layers and latencies")
@click.pass_context
def cluster(ctx: click.Context) -> None:
    """Show the server's workers, the layers and memory on each, their speeds, and the latency of each stage."""
    if ctx.invoked_subcommand is not None:
        return
    with Client() as client:
        state = client.cluster()
    say(table(WORKER_COLUMNS, [worker_row(worker) for worker in state["workers"]]))
    for worker in state["workers"]:
        if worker["detail"]:
            say(f"\n{worker['address']}: {worker['detail']}")
    for model in state["models"]:
        say(f"\n{model_line(model)}\n")
        say(table(STAGE_COLUMNS, [stage_row(stage) for stage in model["stages"]]))
        say(f"\n{speed_line(model)}")
        for note in model["notes"]:
            say(f"\nnote: {note}")


@cluster.command(cls=Command, short_help="Show what loading a model would do")
@click.argument("model")
@click.option("--rpc-servers", metavar="LIST", help="Workers, host:port,host:port (default: those of the server)")
@click.option("--num-ctx", type=int, help="Context length")
@click.option("--num-batch", type=int, help="The most tokens of one pass")
def plan(model: str, **options: str | int | None) -> None:
    """Show layers, bytes and predicted speeds of MODEL for every sensible choice of workers. Nothing is loaded."""
    with Client() as client:
        found = client.plan(model, {name: value for name, value in options.items() if value is not None})
    at_once = f", {found['num_parallel']} at once" if found["num_parallel"] else ""
    say(f"{found['model']}: context {found['num_ctx']}{at_once}\n")
    say(table(PLAN_COLUMNS, [plan_row(entry) for entry in found["plans"]]))
    rows = [planned_row(entry["name"], stage) for entry in found["plans"] for stage in entry["stages"]]
    say(f"\n{table(PLANNED_COLUMNS, rows)}")
    for why in found["absent"]:
        say(f"\nnot there: {why}")


def plan_row(entry: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of plans; the one that a load would make is marked."""
    unloads = [f"unloads {', '.join(entry['unloads'])}"] if entry["unloads"] else []
    remarks = "; ".join([*([entry["error"]] if entry["error"] else []), *unloads, *entry["notes"]])
    speeds = entry["predicted"]
    decode, prefill = (tokens_per_s(speeds[f"{what}_tokens_per_s"]) for what in ("decode", "prefill"))
    return ("*" if entry["chosen"] else "", entry["name"], decode, prefill, remarks)


def planned_row(name: str, stage: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of planned stages."""
    sizes = [human_bytes(stage[f"{what}_bytes"]) for what in ("weight", "kv", "scratch", "need")]
    return (name, stage_name(stage), stage["worker"], *sizes, f"{stage['predicted_us']:.0f} us")


def speed_line(model: dict[str, Any]) -> str:
    """What was predicted for a model beside what was measured."""
    texts = []
    for what in ("decode", "prefill"):
        measured, predicted = (tokens_per_s(model[kind][f"{what}_tokens_per_s"]) for kind in ("measured", "predicted"))
        texts.append(f"{what} {measured} (predicted {predicted})")
    return ", ".join(texts)


def tokens_per_s(speed: float) -> str:
    """A speed as people read it; ``-`` when it is not known."""
    return f"{speed:.1f} tokens/s" if speed else "-"


def model_line(model: dict[str, Any]) -> str:
    """How far a model is, and what it takes."""
    sent = [
        f"{human_bytes(upload['sent_bytes'])} of {human_bytes(upload['total_bytes'])} sent to {upload['worker']}"
        for upload in model["uploads"]
    ]
    return ", ".join([f"{model['name']}: {model['status']}", human_bytes(model["nbytes"]), *sent])


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
    latency = stage.get("latency") or {}
    times = tuple(_percentiles(latency.get(part)) for part in ("compute", "wire", "queue"))
    predicted = f"{stage['predicted_us']:.0f} us"
    return (stage_name(stage), stage["worker"], predicted, *times, str(latency.get("steps", 0)))


def stage_name(stage: dict[str, Any]) -> str:
    """``layers 0..14``, ``head``."""
    layers = f" {stage['first_layer']}..{stage['last_layer']}" if stage["first_layer"] >= 0 else ""
    return f"{stage['part']}{layers}"


def _known(value: float, text: str) -> str:
    return text if value else "-"


def _percentiles(part: dict[str, float] | None) -> str:
    return "-" if part is None else f"{part['p50_us']:.0f}/{part['p95_us']:.0f} us"

"""``ollama cluster``: the workers, what they hold, and where the time of a step goes."""

from __future__ import annotations

from typing import Any

import click

from ollama_zmq.cli.command import Command, Group
from ollama_zmq.cli.tables import NARROW, columns, paragraph, table
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.units import human_bytes

WORKER_COLUMNS = ("WORKER", "STATUS", "LAYERS", "HELD", "BUDGET", "RTT", "DECODE")
STAGE_COLUMNS = ("STAGE", "WORKER", "COMPUTE", "WIRE", "QUEUE")
STAGE_DETAILS = ("PREDICTED", "STEPS")
STAGE_TITLE = "Microseconds of a step, p50/p95:"
PLAN_COLUMNS = ("", "PLAN", "DECODE", "PREFILL")
PLANNED_COLUMNS = ("STAGE", "WORKER", "WEIGHTS", "CACHE", "SCRATCH", "MEMORY", "TOKEN")


@click.group(cls=Group, invoke_without_command=True, short_help="Show the workers, their layers and latencies")
@click.option("-v", "--verbose", is_flag=True, help="Show links, speeds, versions and devices, and what was predicted")
@click.pass_context
def cluster(ctx: click.Context, verbose: bool) -> None:
    """Show the server's workers, the layers and memory on each, their speeds, and the latency of each stage."""
    if ctx.invoked_subcommand is not None:
        return
    with Client() as client:
        state = client.cluster()
    say(table(WORKER_COLUMNS, [worker_row(worker) for worker in state["workers"]], NARROW))
    for worker in state["workers"]:
        if worker["detail"]:
            say(f"\n{paragraph(detail_line(worker))}")
        if verbose:
            say("\n" + "\n".join([worker["address"], *columns(worker_details(worker), NARROW)]))
    for model in state["models"]:
        say(f"\n{paragraph(model_line(model))}\n\n{STAGE_TITLE}\n")
        header = (*STAGE_COLUMNS, *STAGE_DETAILS) if verbose else STAGE_COLUMNS
        say(table(header, [stage_row(stage)[: len(header)] for stage in model["stages"]], NARROW))
        say(f"\n{speed_line(model)}")
        for note in model["notes"]:
            say(f"\n{paragraph(f'note: {note}')}")
        explained = {worker["detail"] for worker in state["workers"]}
        for why in model.get("missing", []):
            if why not in explained:
                say(f"\n{paragraph(f'missing: {why}')}")


@cluster.command(cls=Command, short_help="Show what loading a model would do")
@click.argument("model")
@click.option("--rpc-servers", metavar="LIST", help="Workers, host:port,host:port (default: those of the server)")
@click.option("--num-ctx", metavar="N", type=int, help="Context length")
@click.option("--num-batch", metavar="N", type=int, help="The most tokens of one pass")
def plan(model: str, **options: str | int | None) -> None:
    """Show layers, bytes and predicted speeds of MODEL for every sensible choice of workers. Nothing is loaded."""
    with Client() as client:
        found = client.plan(model, {name: value for name, value in options.items() if value is not None})
    at_once = f", {found['num_parallel']} at once" if found["num_parallel"] else ""
    header, *rows = columns([PLAN_COLUMNS, *map(plan_row, found["plans"])], NARROW)
    say(f"{found['model']}: context {found['num_ctx']}{at_once}\n")
    if note := context_note(options["num_ctx"], found["num_ctx"]):
        say(f"{paragraph(note)}\n")
    say(header)
    for row, entry in zip(rows, found["plans"], strict=True):
        say("\n".join([row, *(paragraph(remark, "     ") for remark in remarks(entry))]))
    for entry in found["plans"]:
        if entry["stages"]:
            say(f"\n{entry['name']}\n\n{table(PLANNED_COLUMNS, list(map(planned_row, entry['stages'])), NARROW)}")
    for why in found["missing"]:
        say(f"\n{paragraph(f'not there: {why}')}")


def context_note(asked: str | int | None, planned: int) -> str:
    """What is said when the context that was *asked* for is not the one *planned*; "" if it is."""
    if asked is None or asked == planned:
        return ""
    bound = "the model's context is" if int(asked) > planned else "the least is"
    return f"note: --num-ctx {asked}: {bound} {planned}, and a load takes that"


def plan_row(entry: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of plans; the one that a load would make is marked."""
    speeds = entry["predicted"]
    decode, prefill = (tokens_per_s(speeds[f"{what}_tokens_per_s"]) for what in ("decode", "prefill"))
    return ("*" if entry["chosen"] else "", entry["name"], decode, prefill)


def remarks(entry: dict[str, Any]) -> list[str]:
    """Why a plan cannot be, what it would unload, and what is to be said of it."""
    unloads = [f"unloads {', '.join(entry['unloads'])}"] if entry["unloads"] else []
    return [*([entry["error"]] if entry["error"] else []), *unloads, *entry["notes"]]


def planned_row(stage: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of a plan's stages."""
    sizes = [human_bytes(stage[f"{what}_bytes"]) for what in ("weight", "kv", "scratch", "need")]
    return (stage_name(stage), stage["worker"], *sizes, f"{stage['predicted_us']:.0f} us")


def speed_line(model: dict[str, Any]) -> str:
    """What was measured of a model beside what was predicted, in tokens per second."""
    texts = []
    for what in ("decode", "prefill"):
        measured, predicted = (_speed(model[kind][f"{what}_tokens_per_s"]) for kind in ("measured", "predicted"))
        texts.append(f"{what} {measured} (predicted {predicted})")
    return f"{', '.join(texts)} tokens/s"


def tokens_per_s(speed: float) -> str:
    """A speed as people read it; ``-`` when it is not known."""
    return f"{_speed(speed)} tokens/s" if speed else "-"


def _speed(speed: float) -> str:
    return f"{speed:.1f}" if speed else "-"


def model_line(model: dict[str, Any]) -> str:
    """How far a model is, and what it takes."""
    sent = [
        f"{human_bytes(upload['sent_bytes'])} of {human_bytes(upload['total_bytes'])} sent to {upload['worker']}"
        for upload in model["uploads"]
    ]
    return ", ".join([f"{model['name']}: {model['status']}", human_bytes(model["nbytes"]), *sent])


def detail_line(worker: dict[str, Any]) -> str:
    """Why a worker is lost or refused; its address is said once."""
    address, detail = worker["address"], worker["detail"]
    return str(detail) if address in detail else f"{address}: {detail}"


def worker_row(worker: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of workers; what was not measured is ``-``."""
    return (
        worker["address"],
        worker["status"],
        worker["layers"] or "-",
        human_bytes(worker["held_bytes"]),
        _known(worker["memory_budget"], human_bytes(worker["memory_budget"])),
        _known(worker["rtt_us"], f"{worker['rtt_us']:.0f} us"),
        _known(worker["decode_bytes_per_s"], f"{human_bytes(round(worker['decode_bytes_per_s']))}/s"),
    )


def worker_details(worker: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the table of workers has no room for."""
    return [
        (
            "",
            "link",
            _known(worker["bandwidth_bytes_per_s"], f"{human_bytes(round(worker['bandwidth_bytes_per_s']))}/s"),
        ),
        ("", "prefill", _known(worker["prefill_macs_per_s"], f"{worker['prefill_macs_per_s'] / 1e9:.1f} GMAC/s")),
        ("", "version", worker["version"] or "-"),
        ("", "device", ", ".join(worker["devices"]) or "-"),
    ]


def stage_row(stage: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table of stages, with its details; latencies in microseconds."""
    latency = stage.get("latency") or {}
    times = tuple(percentiles(latency.get(part)) for part in ("compute", "wire", "queue"))
    return (stage_name(stage), stage["worker"], *times, f"{stage['predicted_us']:.0f}", str(latency.get("steps", 0)))


def stage_name(stage: dict[str, Any]) -> str:
    """``layers 0..14``, ``head``."""
    layers = f" {stage['first_layer']}..{stage['last_layer']}" if stage["first_layer"] >= 0 else ""
    return f"{stage['part']}{layers}"


def _known(value: float, text: str) -> str:
    return text if value else "-"


def percentiles(part: dict[str, float] | None, n_layers: int = 1) -> str:
    """``p50/p95`` of one layer of *n_layers*; ``-`` where nothing was measured."""
    return "-" if part is None else f"{part['p50_us'] / n_layers:.0f}/{part['p95_us'] / n_layers:.0f}"

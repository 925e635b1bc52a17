"""``ollama demo``: a real model answers over workers that are started for it, and everything is gone afterwards."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ollama_zmq.cli.answer import Answer, waiting
from ollama_zmq.cli.children import Children
from ollama_zmq.cli.cluster import WORKER_COLUMNS, percentiles, worker_row
from ollama_zmq.cli.command import Command
from ollama_zmq.cli.tables import NARROW, paragraph, table
from ollama_zmq.cli.terminal import say
from ollama_zmq.client import Client
from ollama_zmq.config import Config

if TYPE_CHECKING:
    from ollama_zmq.store.models import Store

DEFAULT_PROMPT = "Explain in three sentences why the sky is blue."
OPTIONS = {"num_predict": 256, "seed": 1}
STAGE_COLUMNS = ("STAGE", "WORKER", "PER LAYER", "COMPUTE", "WIRE", "QUEUE")
GGUF = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(1, 64)

LOCAL = "The worker called local is the server itself: it turns text into tokens and picks the next one."

Json = dict[str, Any]


@click.command(
    cls=Command,
    environment=("OLLAMA_MODELS", "OLLAMA_CPU_ISA"),
    short_help="Answer a prompt over workers started for it",
)
@click.argument("prompt", default=DEFAULT_PROMPT)
@click.option("--model", "gguf", type=GGUF, help="A GGUF file; else SmolLM2-135M (98 MB, downloaded once).")
@click.option(
    "--workers", "n_workers", metavar="N", type=COUNT, default=2, help="How many workers to start.  [default: 2]"
)
@click.option("--keep", is_flag=True, help="Leave everything running until Ctrl-C.")
def demo(prompt: str, gguf: Path | None, n_workers: int, keep: bool) -> None:
    """Answer PROMPT with a model whose layers are spread over workers on this machine."""
    with _ending_on_signals(), _model(gguf) as (store, name), Children() as children:
        env = {"OLLAMA_MODELS": str(store.root), "OLLAMA_RPC_POLICY": ""}
        with waiting("starting workers and a server; the first start of all measures this machine for some seconds"):
            workers = [children.start_worker(env=env) for _ in range(n_workers)]
            url = children.start_server(workers, env=env)
        say(paragraph(f"Started `ollama rpc-server` at {', '.join(workers)}; `ollama serve` at {url}."))
        with Client(url) as client:
            with waiting(f"loading {name}"):
                client.load(name)
            _show_workers(client.cluster(), gguf.name if gguf else name)
            say(f"\n>>> {prompt}")
            _show_speed(_answer(client, name, prompt))
            _show_latency(client.cluster())
        if keep:
            _stay(url, name)


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """End as an exception does, so that nothing is left running, when we are terminated or the terminal closes."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def _model(gguf: Path | None) -> Iterator[tuple[Store, str]]:
    """A store, and the name in it of the model to run: *gguf* if there is one, else the demo's own.

    Raises:
        RequestError: the model cannot be downloaded, or *gguf* is no GGUF file.
        ModelFileError: *gguf* is damaged.
    """
    from ollama_zmq.store.models import Store

    if gguf is None:
        store = Store(Config.from_environment(os.environ).models)
        yield store, _fetch(store)
        return
    with tempfile.TemporaryDirectory(prefix="ollama-zmq-models-") as folder:
        store = Store(Path(folder))
        yield store, _borrow(store, gguf)


def _fetch(store: Store) -> str:
    """Get the demo's own model into *store*, with a progress bar, and return its name."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from ollama_zmq.store.demo_model import DEMO_NAME, fetch_demo_model

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"fetching {DEMO_NAME}", total=None, visible=False)
        fetch_demo_model(store, lambda done, total: progress.update(bar, completed=done, total=total, visible=True))
    return DEMO_NAME


def _borrow(store: Store, gguf: Path) -> str:
    """Make a model of *gguf* in a store that will be thrown away: its blob is a link, not a copy."""
    from ollama_zmq.store.create import Recipe

    with gguf.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    blob = store.blobs.path(digest)
    blob.parent.mkdir(parents=True)
    blob.symlink_to(gguf.resolve())
    return store.create("demo", Recipe(files={gguf.name: digest})).name.short


def _show_workers(cluster: Json, model: str) -> None:
    """Print which layers sit where, and each worker's memory and speed."""
    say(paragraph(f"Loaded {model}. {LOCAL}"))
    say()
    say(table(WORKER_COLUMNS, [worker_row(worker) for worker in cluster["workers"]], NARROW))
    for loaded in cluster["models"]:
        for note in loaded["notes"]:
            say(f"\n{paragraph(f'note: {note}')}")


def _answer(client: Client, name: str, prompt: str) -> Json:
    """Print the answer as it comes and return the last chunk."""
    answer = Answer(wraps=True)
    answer.show(client.generate(name, prompt, options=OPTIONS))
    say()
    return answer.last


def _show_speed(last: Json) -> None:
    """Print tokens per second from the counts and nanoseconds of the last chunk."""
    parts = []
    for what, count, duration in (
        ("prompt", "prompt_eval_count", "prompt_eval_duration"),
        ("answer", "eval_count", "eval_duration"),
    ):
        if last.get(count) and last.get(duration):
            parts.append(f"{what}: {last[count]} tokens, {last[count] / last[duration] * 1e9:.1f} tokens/s")
    say(f"\n{'; '.join(parts)}\n")


def _show_latency(cluster: Json) -> None:
    """Print where the time of a decoded token went, in microseconds."""
    say("Microseconds of a decoded token, p50/p95 (the median, and 95 of 100):\n")
    stages = [stage for model in cluster["models"] for stage in model["stages"]]
    say(table(STAGE_COLUMNS, [stage_row(stage) for stage in stages if stage.get("latency")], NARROW))


def stage_row(stage: Json) -> tuple[str, ...]:
    first, last, latency = stage["first_layer"], stage["last_layer"], stage["latency"]
    n_layers = last - first + 1 if first >= 0 else 0
    name = f"layers {first}-{last}" if n_layers else stage["part"]
    per_layer = percentiles(latency["compute"], n_layers) if n_layers else "-"
    return (name, stage["worker"], per_layer, *(percentiles(latency[part]) for part in ("compute", "wire", "queue")))


def _stay(url: str, name: str) -> None:
    """Say how to use what runs, and wait for Ctrl-C."""
    body = f'{{"model": "{name}", "prompt": "hello", "stream": false}}'
    say("\nEverything stays up until Ctrl-C. Talk to it from another terminal:\n")
    say(f"  OLLAMA_HOST={url.removeprefix('http://')} ollama run {name}")
    say(f"  curl {url}/api/generate -d '{body}'")
    try:
        signal.pause()
    except KeyboardInterrupt:
        say()

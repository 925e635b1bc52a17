"""What all benchmarks share: the machine they ran on, workers, a loaded model, rounds, tables and JSON.

Two things are compared by running them in turn, round after round, and taking medians: a machine that gets slower while
it is measured then slows both.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from ollama_zmq import log
from ollama_zmq.bus.addresses import parse_servers
from ollama_zmq.bus.broker import Broker
from ollama_zmq.bus.loads import LoadedModel, LoadRequest
from ollama_zmq.cli.children import Children
from ollama_zmq.config import Config
from ollama_zmq.engine.requests import (
    Finished,
    GenerationRequest,
    Output,
    RequestFailed,
    Scored,
    ScoreRequest,
    TextChunk,
)
from ollama_zmq.errors import OllamaZmqError, RequestError
from ollama_zmq.formats.options import Options
from ollama_zmq.store.models import Store
from ollama_zmq.version import VERSION

RELAY = Path(__file__).parents[1] / "tests" / "relay.py"
K = TypeVar("K")
T = TypeVar("T")
_request_numbers = count()


def parser(doc: str | None, *, model: bool = True, cluster: bool = True) -> argparse.ArgumentParser:
    """An argument parser whose help is *doc*, with ``--json`` and what most benchmarks take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="OUT", help="write the results here, as a list of records")
    if model:
        made.add_argument("--model", required=True, metavar="F.gguf|NAME", help="a GGUF file, or a model of the store")
        made.add_argument("--threads", type=int, default=0, help="threads of each process (default: all cores)")
    if cluster:
        made.add_argument("--rpc", default="", metavar="LIST", help="workers that run already: host:port,host:port")
        made.add_argument("--workers", type=int, default=0, metavar="N", help="start N workers on this machine")
    return made


def peer_python_option(made: argparse.ArgumentParser) -> None:
    """Add ``--peer-python``, the Python that llama.cpp runs under."""
    made.add_argument(
        "--peer-python",
        default=os.environ.get("OLLAMA_ZMQ_PEER_PYTHON", str(Path(".tox/peer/bin/python"))),
        help="a Python that has llama-cpp-python (default: $OLLAMA_ZMQ_PEER_PYTHON or .tox/peer/bin/python)",
    )


def run_main(main: Callable[[], None]) -> None:
    """Run *main*; our own errors become one line on stderr and exit code 1, Ctrl-C becomes exit code 130."""
    log.configure(logging.WARNING)
    try:
        main()
    except OllamaZmqError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def check_matplotlib() -> None:
    """Raise RequestError, before anything is measured, if there is nothing to draw with."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise RequestError("--plot needs matplotlib: pip install 'ollama-zmq[plot]'") from None


def environment() -> dict[str, Any]:
    """The facts that every record carries: machine, commit, date, version."""
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"machine": machine, "commit": _commit(), "date": date, "version": VERSION}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit of the checkout this file is in, with ``+`` when something is changed; "" outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_json(out: Path | None, records: Sequence[Mapping[str, Any]]) -> None:
    """Write *records*, each with :func:`environment` added, if *out* was given."""
    if out is not None:
        about = environment()
        out.write_text(json.dumps([{**record, **about} for record in records], indent=1) + "\n", encoding="utf-8")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print *rows* below *header*; the first column to the left, numbers to the right."""
    cells = [[*header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        line = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(line).rstrip())


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def interleaved(cases: Mapping[K, Callable[[], T]], repeats: int) -> dict[K, list[T]]:
    """Run all *cases* in turn, *repeats* times; every second round runs backwards."""
    results: dict[K, list[T]] = {name: [] for name in cases}
    for i in range(repeats):
        for name in list(cases)[:: -1 if i % 2 else 1]:
            results[name].append(cases[name]())
    return results


def median(values: Sequence[float]) -> float:
    """The median of *values*."""
    return float(statistics.median(values))


def resolve_model(text: str) -> tuple[Path, str]:
    """The GGUF file that *text* means and the name of its blob ("" for a file outside the store).

    Raises:
        ModelNotFound: neither a file nor a model of the store.
    """
    if Path(text).is_file():
        return Path(text).resolve(), ""
    path = Store(Config.from_environment(os.environ).models).get(text).gguf_path
    return path, path.name


@contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Threads and processes that are started in the block stay on *cores*; none of them means anywhere."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def worker_addresses(
    rpc: str, n_workers: int, threads: int, cores: Sequence[Collection[int]] = ()
) -> Iterator[tuple[str, ...]]:
    """The workers of *rpc*, and *n_workers* more that run on this machine until the block ends, each on its *cores*."""
    with Children() as children:
        started = []
        for i in range(n_workers):
            with pinned(cores[i] if cores else ()):
                started.append(children.start_worker(threads=threads))
        yield parse_servers(rpc) + tuple(started)


@dataclass(frozen=True, slots=True)
class Session:
    """A model on the broker that has it."""

    broker: Broker
    model: LoadedModel


@contextmanager
def relayed(addresses: Sequence[str], delay_ms: float, mbit: float = 0.0) -> Iterator[tuple[str, ...]]:
    """Where *addresses* are reached over a cable: *delay_ms* one way and *mbit* Mbit/s (0: no limit) either way."""
    if not addresses or not (delay_ms or mbit):
        yield tuple(addresses)
        return
    command = [sys.executable, str(RELAY), "--delay-ms", str(delay_ms), "--mbit", str(mbit), *addresses]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout is not None
        yield tuple(relay.stdout.readline().strip() for _ in addresses)


@contextmanager
def loaded_broker(
    model: str,
    workers: Sequence[str] = (),
    *,
    threads: int = 0,
    num_ctx: int = 2048,
    num_batch: int = 512,
    speculate: bool = False,
) -> Iterator[Session]:
    """*model* on a broker of its own, spread over *workers*, or on this machine alone when there are none.

    Raises:
        OllamaZmqError: it cannot be loaded.
    """
    path, blob = resolve_model(model)
    request = LoadRequest(
        name=model,
        path=path,
        blob=blob,
        num_ctx=num_ctx,
        rpc_servers=tuple(workers),
        num_batch=num_batch,
        num_thread=threads,
        speculate=speculate,
    )
    with Broker(threads=threads or None) as broker:
        yield Session(broker, broker.load(request).result())


def ask(session: Session, request: GenerationRequest | ScoreRequest) -> tuple[Finished | Scored, list[int]]:
    """Run *request* to its end and return the last output and the generated token ids.

    Raises:
        OllamaZmqError: it broke.
    """
    last: Future[Finished | Scored] = Future()
    token_ids: list[int] = []

    def take(output: Output) -> None:
        match output:
            case TextChunk():
                token_ids.extend(output.token_ids)
            case RequestFailed():
                last.set_exception(output.error)
            case Finished() | Scored():
                last.set_result(output)

    session.broker.submit(session.model, request, take)
    return last.result(), token_ids


def generate(session: Session, token_ids: Sequence[int], n_tokens: int, **sampling: Any) -> Finished:
    """Continue *token_ids* by at most *n_tokens* tokens, greedily unless *sampling* options say otherwise."""
    options = Options(**{"temperature": 0.0, "seed": 0, "num_predict": n_tokens, **sampling})
    request = GenerationRequest(_request_id(), tuple(token_ids), options, truncate=False)
    last, _ = ask(session, request)
    assert isinstance(last, Finished)
    return last


def score(session: Session, token_ids: Sequence[int], chunk: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits float32 [T, V] of every position of *token_ids*, *chunk* tokens per pass."""
    last, _ = ask(session, ScoreRequest(_request_id(), tuple(token_ids), chunk))
    assert isinstance(last, Scored)
    return last.logits


def random_prompt(n_tokens: int, vocab_size: int, seed: int) -> list[int]:
    """*n_tokens* token ids drawn from the vocabulary: no two seeds share a prefix worth caching."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, n_tokens)]


def _request_id() -> str:
    return f"benchmark-{next(_request_numbers)}"

"""How fast is a model ready, and how much memory does it take?

    bench_load.py                                   packing, every tensor type, beside a plain copy
    bench_load.py --model F.gguf [--threads 2]      and how long a whole file takes, and what the processes hold

packing: GB of the file per second, from memory to memory, with one thread and with all; "copy" is memcpy of as much.
ready: from the request until a token has passed, the file being in the page cache. "fresh" takes memory as the system
gives it, "reused" memory that was given back a moment before: a virtual machine may wait for its host at the first
touch of a page, which the line "memory" shows. held: the peak of a server's process, and of a worker's that finds the
model in its store, beside what they count (weights, KV cache, scratch) and the 200 MB that may come on top.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import loaded_broker, median, parser, print_table, resolve_model, run_main, write_json

from ollama_zmq.cli.children import Children
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu.memory import Memory
from ollama_zmq.kernels.cpu.pool import Pool
from ollama_zmq.kernels.cpu.recode import RECODED
from ollama_zmq.kernels.cpu.weights import FORMATS
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store

COPIED_NBYTES = 64 << 20
K = 4096
SLAB_NBYTES = 64 << 20


def main() -> None:
    made = parser(__doc__, model=False, cluster=False)
    made.add_argument("--model", metavar="F.gguf|NAME", help="a GGUF file, or a model of the store")
    made.add_argument("--threads", type=int, default=os.cpu_count(), help="of the pool, the server and the worker")
    made.add_argument("--repeats", type=int, default=3)
    given = made.parse_args()
    records = [packing(given)]
    if given.model:
        records += [ready(given), held(given)]
    write_json(given.json, records)


def packing(given: argparse.Namespace) -> dict[str, Any]:
    """Pack weights of every type with one thread and with all."""
    source, packed = Memory(COPIED_NBYTES), Memory(4 * COPIED_NBYTES)
    source.bytes()[:] = 1
    packed.bytes()[:] = 1
    copied = _gb_s(lambda: np.copyto(packed.bytes()[:COPIED_NBYTES], source.bytes()))
    rates = {"copy": [copied, copied]}
    for kind in (kind for kind in QuantType if kind.id in FORMATS):
        rates[kind.name] = [packing_rate(kind, source, packed, threads) for threads in (1, given.threads)]
    rows = [[name, *(f"{rate:.2f}" for rate in found)] for name, found in rates.items()]
    print_table(["type", "1 thread GB/s", f"{given.threads} threads GB/s"], rows)
    return {"what": "packing", "threads": given.threads, "gb_s": rates}


def packing_rate(kind: QuantType, source: Memory, packed: Memory, threads: int) -> float:
    """GB of the file per second."""
    row_nbytes = K // kind.block_size * kind.block_nbytes
    n_rows = COPIED_NBYTES // row_nbytes // 16 * 16
    file, pool, recoding = source.bytes()[: n_rows * row_nbytes], Pool(threads), RECODED.get(kind.id)

    def pack() -> None:
        if recoding is None:
            pool.pack(FORMATS[kind.id].index, file, n_rows, K, packed.address)
        else:
            pool.recode(kind.name, recoding.table, file, n_rows, K, packed.address)

    return _gb_s(pack, n_rows * row_nbytes)


def _gb_s(run: Callable[[], None], nbytes: int = COPIED_NBYTES) -> float:
    return nbytes / min(_seconds(run) for _ in range(5)) / 1e9


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def ready(given: argparse.Namespace) -> dict[str, Any]:
    """Load the model again and again, from memory that the system gives and from memory that it had given before."""
    path, _ = resolve_model(given.model)
    nbytes = path.stat().st_size
    read_s = _seconds(lambda: read_all(path))
    slabs = nbytes // SLAB_NBYTES + 8
    memory_s = [_seconds(lambda: touch(slabs))]
    seconds: dict[str, list[float]] = {"fresh": [], "reused": []}
    for _ in range(given.repeats):
        for way, found in seconds.items():
            memory = touch(slabs) if way == "reused" else []
            for slab in memory:
                slab.close()
            with loaded_broker(given.model, threads=given.threads) as session:
                found.append(session.model.load_s)
    rows = [[f"ready, {way} memory", median(found), nbytes / median(found) / 1e9] for way, found in seconds.items()]
    rows += [["page cache, read", read_s, nbytes / read_s / 1e9]]
    rows += [["memory, first touch", memory_s[0], slabs * SLAB_NBYTES / memory_s[0] / 1e9]]
    print()
    print_table([f"{path.name}, {nbytes / 1e9:.2f} GB", "s", "GB/s"], rows)
    return {"what": "ready", "model": path.name, "threads": given.threads, "seconds": seconds, "read_s": read_s}


def touch(n: int) -> list[Memory]:
    """Return *n* slabs that the system has given memory for."""
    slabs = [Memory(SLAB_NBYTES) for _ in range(n)]
    for slab in slabs:
        slab.bytes()[::4096] = 1
    return slabs


def read_all(path: Path) -> None:
    """Read a file once, so that it is in the page cache."""
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def held(given: argparse.Namespace) -> dict[str, Any]:
    """What a server holds that runs the model alone, and what it and a worker hold together."""
    peaks = {**peaks_of(given, 0), **peaks_of(given, 1)}
    rows = [[name, counted / 1e6, peak / 1e6, (peak - counted) / 1e6] for name, (counted, peak) in peaks.items()]
    print()
    print_table(["process", "counted MB", "peak MB", "on top"], rows)
    return {"what": "held", "model": given.model, "counted_and_peak": peaks}


def peaks_of(given: argparse.Namespace, workers: int) -> dict[str, tuple[int, int]]:
    """Bytes counted and held at most by each process, after some tokens."""
    path, _ = resolve_model(given.model)
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        store, env = Store(Path(folder)), {"OLLAMA_MODELS": folder}
        store.create("measured", Recipe(files={path.name: store.blobs.add_file(path).digest}))
        addresses = [children.start_worker(threads=given.threads, env=env) for _ in range(workers)]
        url = children.start_server(addresses, env=env)
        body = {"model": "measured", "prompt": "a b c", "raw": True, "stream": False, "options": {"num_predict": 4}}
        httpx.post(f"{url}/api/generate", json=body, timeout=200, trust_env=False).raise_for_status()
        found = httpx.get(f"{url}/api/cluster", trust_env=False).json()["workers"]
        counted = {worker["address"]: worker["held_bytes"] for worker in found}
        names = ["worker", "server beside it"] if workers else ["server alone"]
        processes = zip(names, [*addresses, "local"], children.running, strict=True)
        return {name: (counted[address], peak_nbytes(child.pid)) for name, address, child in processes}


def peak_nbytes(pid: int) -> int:
    """The most memory that a process has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    run_main(main)

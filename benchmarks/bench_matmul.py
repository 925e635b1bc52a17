"""How fast is prefill's mat-mul beside llama.cpp's, and beside what the multipliers can do?

    bench_matmul.py --threads 2 --peer-python .tox/peer/bin/python [--kinds Q4_K,F16] [--sizes 512x4096x4096]

x [T, K] float32 times a weight [N, K], in turns with ggml's own mat-mul; medians. Of the ways ggml can hold the weight
(repacked or not) the faster one counts. ``peak`` is what float32 multiply-adds reach in cache, in the same
rounds, and four times that for quantized weights on AVX-512: a VPDPBUSD does four multiply-adds, an FMA one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bench_ops import GIB, elapsed
from common import interleaved, median, parser, peer_python_option, print_table, run_main, write_json

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu.device import CpuDevice
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify

PEER_SCRIPT = Path(__file__).with_name("peer_matmul.py")
KINDS = "Q4_K,Q8_0,Q4_0,Q6_K,Q5_K,F16"
HEADER = ["type", "T x N x K", "ours GOP/s", "of peak", "llama.cpp GOP/s", "ours to it"]
IN_CACHE = (480, 4096, 256)
FLOATS = ("F32", "F16", "BF16")

Sizes = tuple[int, int, int]  # T, N, K


def main() -> None:
    given = arguments()
    device = CpuDevice(threads=given.threads or None, budget=Budget(4 * GIB), isa=given.isa)
    with peer(given.peer_python, device.threads) as ask:
        records = [measured(device, ask, kind, given.sizes, given.repeats) for kind in given.kinds.split(",")]
    print(f"{device.name}, median of {given.repeats}")
    print_table(HEADER, [line(record) for record in records])
    write_json(given.json, records)
    device.close()


def arguments() -> argparse.Namespace:
    made = parser(__doc__, model=False, cluster=False)
    made.add_argument("--threads", type=int, default=0, help="threads of each side (default: all cores)")
    made.add_argument("--isa", help="our instruction set (default: the fastest)")
    made.add_argument("--kinds", default=KINDS, help=f"tensor types (default {KINDS})")
    made.add_argument("--sizes", type=sizes, default="512x4096x4096", help="TxNxK (default 512x4096x4096)")
    made.add_argument("--repeats", type=int, default=7)
    peer_python_option(made)
    return made.parse_args()


def sizes(text: str) -> Sizes:
    T, N, K = map(int, text.split("x"))
    return T, N, K


@contextmanager
def peer(python: str, threads: int) -> Iterator[Callable[[str], list[float]]]:
    """ggml: a function that sends it one line and returns the seconds of each way it ran.

    Raises:
        OllamaZmqError: it exits.
    """
    command = [python, str(PEER_SCRIPT), str(threads)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(line: str) -> list[float]:
            print(line, file=questions, flush=True)
            answer = answers.readline()
            if not answer:
                raise OllamaZmqError(f"ggml exited with code {process.wait()}: {' '.join(command)}")
            return [float(seconds) for seconds in json.loads(answer)]

        try:
            yield ask
        finally:
            process.kill()


@contextmanager
def ours(device: CpuDevice, kind: str, shape: Sizes) -> Iterator[Callable[[], list[float]]]:
    """Our mat-mul with a weight that has no meaning: a function that returns the seconds of one run."""
    T, N, K = shape
    spec = WeightSpec("w", QuantType[kind].id, (N, K))
    ops = Builder("linear")
    verified = verify(ops.program("out", ops.linear(ops.input("x", ("T", K)), ops.weight(spec))))
    weight = device.blank_weight(spec)
    executable = device.compile(verified, {"w": weight}, kv_pages=0, max_tokens=T)
    x, step = np.random.default_rng(1).normal(size=(T, K)).astype(np.float32), Step.of([T], [0])
    try:
        yield lambda: [elapsed(lambda: executable.run(x, step))]
    finally:
        executable.close()
        weight.close()


def measured(
    device: CpuDevice, ask: Callable[[str], list[float]], kind: str, shape: Sizes, repeats: int
) -> dict[str, Any]:
    """Medians of both, in turns, after one run each that does not count."""
    T, N, K = shape
    ask(json.dumps({"kind": QuantType[kind].id, "T": T, "N": N, "K": K}))
    with ours(device, kind, shape) as run, ours(device, "F32", IN_CACHE) as in_cache:
        run()
        runs = interleaved(
            {"ours": run, "llama.cpp": lambda: ask(""), "in cache": lambda: min(in_cache() for _ in range(5))},
            repeats,
        )
    seconds = {who: min(median(way) for way in zip(*times, strict=True)) for who, times in runs.items()}
    gops, peer_gops = (2 * T * N * K / seconds[who] / 1e9 for who in ("ours", "llama.cpp"))
    per_fma = 1 if kind in FLOATS or "avx512" not in device.name else 4
    return {
        "kind": kind,
        "T": T,
        "N": N,
        "K": K,
        "threads": device.threads,
        "gops": gops,
        "peer_gops": peer_gops,
        "peak_gops": per_fma * 2 * math.prod(IN_CACHE) / seconds["in cache"] / 1e9,
        "runs": runs,
    }


def line(record: dict[str, Any]) -> list[object]:
    gops, peer_gops = record["gops"], record["peer_gops"]
    shape = f"{record['T']} x {record['N']} x {record['K']}"
    return [record["kind"], shape, gops, f"{gops / record['peak_gops']:.0%}", peer_gops, f"{gops / peer_gops:.2f}x"]


if __name__ == "__main__":
    run_main(main)

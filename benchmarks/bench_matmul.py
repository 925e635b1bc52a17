"""How fast is prefill's mat-mul beside llama.cpp's, and beside what the multipliers can do?

    bench_matmul.py --threads 2 --peer-python .tox/peer/bin/python [--kinds Q4_K,F16] [--sizes 512x4096x4096,...]

x [T, K] float32 times a weight [N, K] (GEMM), in turns with ggml's own mat-mul; medians. Of the ways ggml can hold the
weight (repacked or not) the faster one counts. ``peak`` is what float32 multiply-adds reach in cache, in the same
rounds, and four times that for quantized weights on AVX-512: a VPDPBUSD does four multiply-adds, an FMA one. By default
K is 4096 and 14336, which is ffn_down at 8B: ``to the first`` says what wide rows lose.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
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
SIZES = "512x4096x4096,512x4096x14336"
HEADER = ["type", "T x N x K", "ours GOP/s", "of peak", "to the first", "llama.cpp GOP/s", "ours to it"]
IN_CACHE = (480, 4096, 256)
FLOATS = ("F32", "F16", "BF16")

Sizes = tuple[int, int, int]  # T, N, K
Ask = Callable[[str], list[float]]  # one line to ggml -> the seconds of each way it ran


def main() -> None:
    given = arguments()
    device = CpuDevice(threads=given.threads or None, budget=Budget(4 * GIB), isa=given.isa)
    with nullcontext() if given.alone else peer(given.peer_python, device.threads) as ask:
        records = [measured(device, ask, kind, given.sizes, given.repeats) for kind in given.kinds.split(",")]
    print(f"{device.name}, median of {given.repeats}")
    print_table(HEADER, [line(record, of_kind[0]) for of_kind in records for record in of_kind])
    write_json(given.json, [record for of_kind in records for record in of_kind])
    device.close()


def arguments() -> argparse.Namespace:
    made = parser(__doc__, model=False, cluster=False)
    made.add_argument("--threads", type=int, default=0, help="threads of each side (default: all cores)")
    made.add_argument("--isa", help="our instruction set (default: the fastest)")
    made.add_argument("--kinds", default=KINDS, help=f"tensor types (default {KINDS})")
    made.add_argument("--sizes", type=sizes, default=SIZES, help=f"TxNxK, one or more (default {SIZES})")
    made.add_argument("--repeats", type=int, default=7)
    made.add_argument("--alone", action="store_true", help="without llama.cpp")
    peer_python_option(made)
    return made.parse_args()


def sizes(text: str) -> list[Sizes]:
    """Return T, N and K of each of ``TxNxK,...``."""
    return [(int(T), int(N), int(K)) for T, N, K in (shape.split("x") for shape in text.split(","))]


@contextmanager
def peer(python: str, threads: int) -> Iterator[Ask]:
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


def measured(device: CpuDevice, ask: Ask | None, kind: str, shapes: list[Sizes], repeats: int) -> list[dict[str, Any]]:
    """Medians of both at each of *shapes*, all in turns, after one run each that does not count."""
    with ExitStack() as opened:
        in_cache = opened.enter_context(ours(device, "F32", IN_CACHE))
        cases: dict[tuple[str, Sizes], Callable[[], list[float]]] = {}
        for shape in shapes:
            cases["ours", shape] = opened.enter_context(ours(device, kind, shape))
            if ask:
                cases["llama.cpp", shape] = partial(ask, json.dumps({"kind": QuantType[kind].id, **named(shape)}))
        for run in cases.values():
            run()
        cases["in cache", IN_CACHE] = lambda: [min(in_cache()[0] for _ in range(5))]
        runs = interleaved(cases, repeats)
    seconds = {case: min(median(way) for way in zip(*times, strict=True)) for case, times in runs.items()}
    per_fma = 1 if kind in FLOATS or "avx512" not in device.name else 4
    return [
        {
            "kind": kind,
            **named(shape),
            "threads": device.threads,
            "gops": gops(shape, seconds["ours", shape]),
            "peer_gops": gops(shape, seconds["llama.cpp", shape]) if ask else None,
            "peak_gops": per_fma * gops(IN_CACHE, seconds["in cache", IN_CACHE]),
            "runs": {who: times for (who, of), times in runs.items() if of in (shape, IN_CACHE)},
        }
        for shape in shapes
    ]


def named(shape: Sizes) -> dict[str, int]:
    """Return *shape* as the JSON has it."""
    return dict(zip("TNK", shape, strict=True))


def gops(shape: Sizes, seconds: float) -> float:
    """Return how many billion operations a second a product of *shape* in *seconds* is."""
    return 2 * math.prod(shape) / seconds / 1e9


def line(record: dict[str, Any], first: dict[str, Any]) -> list[object]:
    """Return the table's line of *record*; *first* is the first shape of the same type."""
    gops, peer_gops = record["gops"], record["peer_gops"]
    shape = f"{record['T']} x {record['N']} x {record['K']}"
    beside = [peer_gops, f"{gops / peer_gops:.2f}x"] if peer_gops else ["", ""]
    return [record["kind"], shape, gops, f"{gops / record['peak_gops']:.0%}", f"{gops / first['gops']:.2f}", *beside]


if __name__ == "__main__":
    run_main(main)

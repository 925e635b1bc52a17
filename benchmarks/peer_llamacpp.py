"""llama.cpp, driven the way ours is: the same token ids, one prefill pass, greedy decoding.

    peer_llamacpp.py serve HOST:PORT THREADS
    peer_llamacpp.py bench MODEL [--rpc HOST:PORT,HOST:PORT] [--threads N] [--context N] [--streams N]

It runs under a Python that has llama-cpp-python 0.3.36, built with RPC for this machine (``tox run -e peer``), and
needs nothing of ours. ``bench`` answers each line of stdin, ``{"prompt": [ids], "decode": [ids], "n_decode": n}``,
by one line: seconds of a prefill of ``prompt``, and of n tokens decoded after a prefill of ``decode``, for each way
it can run. ``{"streams": [[ids], ...], "n_decode": n, "way": w}`` asks for the seconds of n tokens of each of these
sequences: one batch has a token of each, as in a turn of llama.cpp's server.

Two ways are tried on this machine, with and without repacked weights, because which one is faster depends on the tensor
types; who compares takes the better. Over RPC there is no repacking. The package ignores its own parameter for RPC
servers, so they are registered through ggml's C interface.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as C  # noqa: N812 - the C interface

LIBRARIES = Path(llama_cpp.__file__).parent / "lib"


def library(name: str) -> ctypes.CDLL:
    """The library that libllama itself is linked to: the unversioned file beside it would be a second registry."""
    return ctypes.CDLL(str(LIBRARIES / f"lib{name}.so.0"))


def serve(endpoint: str, threads: int) -> None:
    """Lend the CPU of this machine at *endpoint* until killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with whoever started this
    ggml, rpc = library("ggml"), library("ggml-rpc")
    ggml.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    devices = (ctypes.c_void_p * 1)(ggml.ggml_backend_dev_by_type(0))
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(endpoint.encode(), None, threads, 1, devices)


def register_workers(endpoints: list[str]) -> None:
    """Make the RPC servers at *endpoints* devices of this process."""
    ggml, rpc = library("ggml"), library("ggml-rpc")
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for endpoint in endpoints:
        ggml.ggml_backend_register(rpc.ggml_backend_rpc_add_server(endpoint.encode()))


class Engine:
    """One loaded model with one context."""

    def __init__(self, path: str, *, threads: int, context: int, repack: bool, offload: bool, streams: int = 1) -> None:
        model = C.llama_model_default_params()
        model.n_gpu_layers = 999 if offload else 0
        model.use_extra_bufts = repack
        self.model = C.llama_model_load_from_file(path.encode(), model)
        settings = C.llama_context_default_params()
        settings.n_ctx = context
        settings.n_seq_max = streams
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = C.llama_init_from_model(self.model, settings) if self.model else None
        if not self.context:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.greedy = C.llama_sampler_init_greedy()

    def prefill(self, token_ids: list[int]) -> float:
        """Seconds for *token_ids* and the first token, from an empty cache."""
        C.llama_memory_clear(C.llama_get_memory(self.context), True)
        started = time.perf_counter()
        for i in range(0, len(token_ids), 512):
            self._pass(token_ids[i : i + 512])
        self.token = C.llama_sampler_sample(self.greedy, self.context, -1)
        return time.perf_counter() - started

    def decode(self, n_tokens: int) -> float:
        """Seconds for *n_tokens* more tokens."""
        started = time.perf_counter()
        for _ in range(n_tokens):
            self._pass([self.token])
            self.token = C.llama_sampler_sample(self.greedy, self.context, -1)
        return time.perf_counter() - started

    def decode_together(self, prompts: list[list[int]], n_tokens: int) -> float:
        """Seconds for *n_tokens* tokens of each sequence, after prefills of *prompts*."""
        C.llama_memory_clear(C.llama_get_memory(self.context), True)
        latest = []
        for i, prompt in enumerate(prompts):
            self._batch([(token, at, i, at == len(prompt) - 1) for at, token in enumerate(prompt)])
            latest.append(C.llama_sampler_sample(self.greedy, self.context, -1))
        started = time.perf_counter()
        for step in range(n_tokens):
            self._batch([(token, len(prompts[i]) + step, i, True) for i, token in enumerate(latest)])
            latest = [C.llama_sampler_sample(self.greedy, self.context, i) for i in range(len(latest))]
        return time.perf_counter() - started

    def _batch(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Run tokens, each with its position, its sequence, and whether its logits are wanted."""
        batch = C.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if C.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama.cpp: llama_decode failed")
        C.llama_synchronize(self.context)
        C.llama_batch_free(batch)

    def _pass(self, token_ids: list[int]) -> None:
        array = (C.llama_token * len(token_ids))(*token_ids)  # a batch only points to it
        if C.llama_decode(self.context, C.llama_batch_get_one(array, len(token_ids))) != 0:
            raise SystemExit("llama.cpp: llama_decode failed")
        C.llama_synchronize(self.context)


def bench(model: str, workers: list[str], threads: int, context: int, streams: int) -> None:
    """Answer measurements asked for on stdin until it closes."""
    C.llama_backend_init()
    register_workers(workers)
    ways = {"rpc": False} if workers else {"plain": False, "repacked": True}
    engines = {
        way: Engine(model, threads=threads, context=context, repack=repack, offload=bool(workers), streams=streams)
        for way, repack in ways.items()
    }
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints must not mix with the answers
    print(json.dumps({"ready": list(engines)}), file=answer, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "streams" in asked:
            seconds = engines[asked["way"]].decode_together(asked["streams"], asked["n_decode"])
            result: object = {"decode_s": seconds}
        else:
            result = {way: measured(engine, asked) for way, engine in engines.items()}
        print(json.dumps(result), file=answer, flush=True)


def measured(engine: Engine, asked: dict[str, Any]) -> dict[str, float]:
    """Seconds of a prefill, and of tokens decoded after another."""
    prefill_s = engine.prefill(asked["prompt"])
    engine.prefill(asked["decode"])
    return {"prefill_s": prefill_s, "decode_s": engine.decode(asked["n_decode"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve")
    server.add_argument("endpoint")
    server.add_argument("threads", type=int)
    client = commands.add_parser("bench")
    client.add_argument("model")
    client.add_argument("--rpc", default="")
    client.add_argument("--threads", type=int, default=os.cpu_count())
    client.add_argument("--context", type=int, default=2048)
    client.add_argument("--streams", type=int, default=1, help="sequences that one context holds")
    given = parser.parse_args()
    if given.command == "serve":
        serve(given.endpoint, given.threads)
    else:
        bench(given.model, [e for e in given.rpc.split(",") if e], given.threads, given.context, given.streams)


if __name__ == "__main__":
    main()

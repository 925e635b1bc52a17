"""llama.cpp, driven the way ours is: the same token ids, one prefill pass, greedy decoding.

    peer_llamacpp.py serve HOST:PORT THREADS
    peer_llamacpp.py bench MODEL [--rpc HOST:PORT,HOST:PORT] [--threads N] [--context N]

It runs under a Python that has llama-cpp-python 0.3.36, built with RPC for this machine (``tox run -e peer``), and
needs nothing of ours. ``bench`` answers each line of stdin, ``{"prompt": [ids], "decode": [ids], "n_decode": n}``,
by one line: seconds of a prefill of ``prompt``, and of n tokens decoded after a prefill of ``decode``, for each way
it can run.

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

    def __init__(self, path: str, *, threads: int, context: int, repack: bool, offload: bool) -> None:
        model = C.llama_model_default_params()
        model.n_gpu_layers = 999 if offload else 0
        model.use_extra_bufts = repack
        self.model = C.llama_model_load_from_file(path.encode(), model)
        settings = C.llama_context_default_params()
        settings.n_ctx = context
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

    def _pass(self, token_ids: list[int]) -> None:
        array = (C.llama_token * len(token_ids))(*token_ids)  # a batch only points to it
        if C.llama_decode(self.context, C.llama_batch_get_one(array, len(token_ids))) != 0:
            raise SystemExit("llama.cpp: llama_decode failed")
        C.llama_synchronize(self.context)


def bench(model: str, workers: list[str], threads: int, context: int) -> None:
    """Answer measurements asked for on stdin until it closes."""
    C.llama_backend_init()
    register_workers(workers)
    ways = {"rpc": False} if workers else {"plain": False, "repacked": True}
    engines = {
        way: Engine(model, threads=threads, context=context, repack=repack, offload=bool(workers))
        for way, repack in ways.items()
    }
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints must not mix with the answers
    print(json.dumps({"ready": list(engines)}), file=answer, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        result = {}
        for way, engine in engines.items():
            prefill_s = engine.prefill(asked["prompt"])
            engine.prefill(asked["decode"])
            result[way] = {"prefill_s": prefill_s, "decode_s": engine.decode(asked["n_decode"])}
        print(json.dumps(result), file=answer, flush=True)


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
    given = parser.parse_args()
    if given.command == "serve":
        serve(given.endpoint, given.threads)
    else:
        bench(given.model, [e for e in given.rpc.split(",") if e], given.threads, given.context)


if __name__ == "__main__":
    main()

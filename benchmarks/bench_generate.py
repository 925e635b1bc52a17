"""How many tokens per second, straight through the broker and the engine? pp512 and tg128, alone or beside llama.cpp.

    bench_generate.py --model F.gguf --threads 2                     this machine alone
    bench_generate.py --model F.gguf --workers 2 --threads 1         two workers with a core each
    bench_generate.py --model F.gguf --workers 1 --threads 2 --alone what a worker costs
    bench_generate.py --model F.gguf --workers 1 --threads 1 --alone --pin     the same, on a core of its own
    bench_generate.py --model F.gguf --threads 2 --peer              the same with llama.cpp, in turns

pp: a prompt of random token ids from an empty cache to the first token. tg: tokens decoded greedily after a prompt of
eight. Medians over the repeats, after one round that does not count. Every repeat has a prompt of its own. Of the two
ways llama.cpp can hold weights (repacked or not) the better median counts, for each figure by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from common import (
    Session,
    generate,
    interleaved,
    loaded_broker,
    median,
    parser,
    peer_python_option,
    pinned,
    print_table,
    random_prompt,
    resolve_model,
    run_main,
    worker_addresses,
    write_json,
)

from ollama_zmq.cli.children import Children, free_port, is_listening
from ollama_zmq.errors import OllamaZmqError

PEER_SCRIPT = Path(__file__).with_name("peer_llamacpp.py")
SHORT_PROMPT = 8

Speeds = dict[str, tuple[float, float]]  # way of running -> prefill and decode, tokens per second


class Case(NamedTuple):
    """What is measured: whose engine ("ours" or "llama.cpp"), over how many workers."""

    engine: str
    workers: int


def main() -> None:
    given = arguments()
    threads = given.threads or os.cpu_count() or 1
    context = given.prompt + given.decode + 64
    if given.peer:
        check_peer(given.peer_python)
    own, rest = places(given.workers, threads) if given.pin else ([], ())
    with ExitStack() as stack:
        workers = stack.enter_context(worker_addresses(given.rpc, given.workers, threads, own))
        cases: dict[Case, Callable[[], Speeds]] = {}
        for case in [Case("ours", len(workers)), *([Case("ours", 0)] if given.alone and workers else [])]:
            used = workers[: case.workers]
            with pinned(rest if used else own[0] if own else ()):
                session = stack.enter_context(loaded_broker(given.model, used, threads=threads, num_ctx=context))
            vocab_size = session.model.network.vocab_size
            cases[case] = our_case(session, vocab_size, given.prompt, given.decode)
        if given.peer:
            ask_peer = stack.enter_context(peer(given, threads, context))
            cases[Case("llama.cpp", given.workers)] = peer_case(ask_peer, vocab_size, given.prompt, given.decode)
        for measure in cases.values():
            measure()
        measured = interleaved(cases, given.repeats)
    records = [
        {
            "model": given.model,
            "threads": threads,
            **case._asdict(),
            **summary(runs, given.prompt, given.decode),
        }
        for case, runs in measured.items()
    ]
    report(records)
    write_json(given.json, records)


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default 512)")
    made.add_argument("--decode", type=int, default=128, help="tokens to decode (default 128)")
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--alone", action="store_true", help="run ours without workers as well, in turns")
    made.add_argument("--pin", action="store_true", help="workers on cores of their own, the broker on what is left")
    made.add_argument("--peer", action="store_true", help="run llama.cpp in turns with ours")
    peer_python_option(made)
    given = made.parse_args()
    if given.peer and given.rpc:
        made.error("--peer starts its own workers: use --workers N instead of --rpc")
    if min(given.prompt, given.decode, given.repeats) < 1:
        made.error("--prompt, --decode and --repeats start at 1")
    return given


def places(n_workers: int, threads: int) -> tuple[list[list[int]], list[int]]:
    """The cores of each worker, as many as it has threads, and those that are left for the broker.

    Raises:
        OllamaZmqError: there are not so many.
    """
    cores = sorted(os.sched_getaffinity(0))
    taken = n_workers * threads
    if not 0 < taken <= len(cores):
        raise OllamaZmqError(f"--pin needs workers, of {len(cores)} threads in all at most: they have {taken}")
    return [cores[i : i + threads] for i in range(0, taken, threads)], cores[taken:]


def our_case(session: Session, vocab_size: int, n_prompt: int, n_decode: int) -> Callable[[], Speeds]:
    """One measurement of ours per call."""
    seeds = count()
    lasting = lasting_prompt(session, vocab_size, n_decode)

    def measure() -> Speeds:
        prefilled = generate(session, random_prompt(n_prompt, vocab_size, next(seeds)), 1)
        decoded = generate(session, lasting, n_decode + 1)
        return {"ours": (n_prompt / prefilled.prefill_s, (decoded.output_tokens - 1) / decoded.decode_s)}

    return measure


def lasting_prompt(session: Session, vocab_size: int, n_decode: int) -> list[int]:
    """A short prompt whose continuation does not end before *n_decode* tokens.

    Raises:
        OllamaZmqError: none was found.
    """
    for seed in range(1000, 1032):
        prompt = random_prompt(SHORT_PROMPT, vocab_size, seed)
        if generate(session, prompt, n_decode + 1).output_tokens == n_decode + 1:
            return prompt
    raise OllamaZmqError(f"this model ends every text before {n_decode} tokens: use a smaller --decode")


@contextmanager
def peer(
    given: argparse.Namespace, threads: int, context: int, streams: int = 1
) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """llama.cpp with the model loaded: a function that sends it one record and returns its answer.

    Raises:
        OllamaZmqError: it exits.
    """
    with Children() as children:
        endpoints = [start_peer_worker(children, given.peer_python, threads) for _ in range(given.workers)]
        path, _ = resolve_model(given.model)
        command = [given.peer_python, str(PEER_SCRIPT), "bench", str(path), "--rpc", ",".join(endpoints)]
        command += ["--threads", str(threads), "--context", str(context), "--streams", str(streams)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def answer() -> Any:
            line = answers.readline()
            if not line:
                raise OllamaZmqError(f"llama.cpp exited with code {process.wait()}: {' '.join(command)}")
            return json.loads(line)

        def ask(record: dict[str, Any]) -> Any:
            print(json.dumps(record), file=questions, flush=True)
            return answer()

        try:
            answer()
            yield ask
        finally:
            process.kill()
            process.communicate()


def check_peer(python: str) -> None:
    """Raise OllamaZmqError unless *python* can import llama.cpp."""
    try:
        subprocess.run([python, "-c", "import llama_cpp"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise OllamaZmqError(
            f"{python} has no llama-cpp-python: build it with 'tox run -e peer' and name its Python by --peer-python"
        ) from None


def start_peer_worker(children: Children, python: str, threads: int) -> str:
    """Start one of llama.cpp's RPC servers and return its endpoint."""
    port = free_port()
    child = children.run([python, str(PEER_SCRIPT), "serve", f"127.0.0.1:{port}", str(threads)], "llama.cpp rpc-server")
    child.wait_until(lambda: is_listening(port))
    return f"127.0.0.1:{port}"


def peer_case(
    ask: Callable[[dict[str, Any]], Any], vocab_size: int, n_prompt: int, n_decode: int
) -> Callable[[], Speeds]:
    """One measurement of llama.cpp per call."""
    seeds = count()

    def measure() -> Speeds:
        prompt = random_prompt(n_prompt, vocab_size, next(seeds))
        short = random_prompt(SHORT_PROMPT, vocab_size, 1000)
        took = ask({"prompt": prompt, "decode": short, "n_decode": n_decode})
        return {way: (n_prompt / s["prefill_s"], n_decode / s["decode_s"]) for way, s in took.items()}

    return measure


def summary(runs: Sequence[Speeds], n_prompt: int, n_decode: int) -> dict[str, Any]:
    """Medians of the way that is best at prefill, and of the one that is best at decode."""
    prefill = {way: median([run[way][0] for run in runs]) for way in runs[0]}
    decode = {way: median([run[way][1] for run in runs]) for way in runs[0]}
    return {
        "prompt": n_prompt,
        "decode": n_decode,
        "prefill_tokens_per_s": max(prefill.values()),
        "decode_tokens_per_s": max(decode.values()),
        "repeats": len(runs),
        "ways": {way: {"prefill_tokens_per_s": prefill[way], "decode_tokens_per_s": decode[way]} for way in prefill},
        "runs": runs,
    }


def report(records: Sequence[dict[str, Any]]) -> None:
    """One line per case; below them the ratio of the first to each other one."""
    prompt, decode = f"pp{records[0]['prompt']} tok/s", f"tg{records[0]['decode']} tok/s"
    rows = [
        [r["engine"], r["workers"], r["threads"], r["prefill_tokens_per_s"], r["decode_tokens_per_s"]] for r in records
    ]
    first = records[0]
    for other in records[1:]:
        ratios = [first[name] / other[name] for name in ("prefill_tokens_per_s", "decode_tokens_per_s")]
        name = f"first to {other['engine']}"
        rows.append([name, other["workers"], other["threads"], *(f"{ratio:.2f}x" for ratio in ratios)])
    print(f"{Path(records[0]['model']).name}, median of {records[0]['repeats']}")
    print_table(["engine", "workers", "threads", prompt, decode], rows)


if __name__ == "__main__":
    run_main(main)

"""Do more workers give more speed, and many requests more than one? Straight through the broker and the engine.

    bench_pipeline.py prefill decode --model F.gguf    one core against two: a worker of one thread on each
    bench_pipeline.py emulated                         three workers against one, whose layers are sleeps
    bench_pipeline.py groups                           the cost model's groups against every other number, 0 to 10 ms
    bench_pipeline.py streams --model F.gguf           8 streams against one on this machine, all its threads
    bench_pipeline.py gap --model F.gguf               tokens of running streams while a foreign prompt is prefilled
    bench_pipeline.py turns --model F.gguf             time to first token of a chat's second turn

Medians of rounds in turns, after one that does not count. "One core" has all processes pinned to it, broker and head
among them, and so have "two cores" a worker each and share the rest: what a second machine adds, with nothing hidden.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from common import (
    Session,
    generate,
    interleaved,
    median,
    parser,
    print_table,
    random_prompt,
    relayed,
    resolve_model,
    run_main,
    write_json,
)
from synthetic_model import Shape, write

from ollama_zmq.bus.broker import Broker, LoadRequest
from ollama_zmq.cli.children import Children, free_port, is_listening
from ollama_zmq.engine.requests import Broken, Finished, GenerationRequest, Output, Piece
from ollama_zmq.formats.options import Options

N_STREAMS = 8
THIN = Shape(6, 256, 4, 2, 512, tied=True, context_length=4096)
PREFILL_COST, DECODE_COST = (0.4, 0.4), (5.0, 5.0)  # f and k of the three-worker rows, ms per layer
GROUP_COSTS = ((0.5, 0.5), (2.0, 0.03))  # like a CPU, like a GPU; per layer
RTTS_MS = (0.0, 2.0, 10.0)
EMULATOR = Path(__file__).with_name("emulated_worker.py")
_numbers = count()


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Threads and processes that are started in the block stay on *cores*."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Streams:
    """Requests at the same time: when each got its tokens, and how many there were."""

    def __init__(self, session: Session, prompts: Sequence[Sequence[int]], n_tokens: int) -> None:
        self.times: list[list[float]] = [[] for _ in prompts]
        self.finished: list[Finished | Broken] = []
        self._left = threading.Semaphore(0)
        options = Options(temperature=0.0, seed=0, num_predict=n_tokens)
        for i, prompt in enumerate(prompts):
            request = GenerationRequest(f"stream-{next(_numbers)}", tuple(prompt), options, truncate=False)
            session.broker.submit(session.model, request, self._taking(self.times[i]))

    def _taking(self, times: list[float]) -> Callable[[Output], None]:
        def take(output: Output) -> None:
            match output:
                case Piece():
                    times.extend([time.monotonic()] * len(output.token_ids))
                case Finished() | Broken():
                    self.finished.append(output)
                    self._left.release()

        return take

    def wait(self) -> float:
        """Tokens per second of all, from the last first token to the first last one: while all of them run."""
        for _ in self.times:
            self._left.acquire()
        begun, ended = max(times[0] for times in self.times), min(times[-1] for times in self.times)
        return sum(begun < at <= ended for times in self.times for at in times) / (ended - begun)


def opened(
    stack: ExitStack, model: str, workers: Sequence[str], threads: int, *, groups: int = 0, num_ctx: int = 2304
) -> Session:
    """A broker with *model* over *workers*, until *stack* ends."""
    path, blob = resolve_model(model)
    request = LoadRequest(model, path, num_ctx, blob, tuple(workers), num_parallel=9, max_in_flight=groups)
    broker = stack.enter_context(Broker(threads=threads))
    return Session(broker, broker.load(request).result())


def one_and_two_cores(stack: ExitStack, model: str) -> dict[str, Session]:
    """The model over one worker, everything on one core; and over two workers, on two."""
    children = stack.enter_context(Children())
    sessions, cores = {}, sorted(os.sched_getaffinity(0))[:2]
    for name, used in (("one", cores[:1]), ("two", cores)):
        workers = []
        for core in used:
            with pinned({core}):
                workers.append(children.start_worker(threads=1))
        with pinned(set(used)):
            sessions[name] = opened(stack, model, workers, 1)
    return sessions


def emulated(stack: ExitStack, n: int, fixed_ms: float, row_ms: float) -> list[str]:
    """The addresses of *n* workers that sleep."""
    children, ports = stack.enter_context(Children()), [free_port() for _ in range(n)]
    for port in ports:
        command = [sys.executable, str(EMULATOR), str(port), str(fixed_ms), str(row_ms)]
        children.run(command, EMULATOR.name).wait_until(lambda port=port: is_listening(port))
    return [f"127.0.0.1:{port}" for port in ports]


@contextmanager
def thin_model() -> Iterator[str]:
    """A file with six small layers and a small vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "thin.gguf")
        write(path, THIN, "q8_0", 1024, 1)
        yield str(path)


def prefill_speed(session: Session, n_tokens: int) -> float:
    """Prompt tokens per second to the first token."""
    prompt = random_prompt(n_tokens, session.model.network.vocab_size, next(_numbers))
    started = time.monotonic()
    generate(session, prompt, 1)
    return n_tokens / (time.monotonic() - started)


def decode_speed(session: Session, n: int, n_tokens: int) -> float:
    """Tokens per second of *n* streams in sum."""
    vocabulary = session.model.network.vocab_size
    return Streams(session, [random_prompt(1, vocabulary, next(_numbers)) for _ in range(n)], n_tokens).wait()


def medians(cases: dict[Any, Callable[[], float]], repeats: int) -> dict[Any, float]:
    """The median of each case over the rounds after the first."""
    return {name: median(values[1:]) for name, values in interleaved(cases, repeats + 1).items()}


def compared(what: str, one: float, many: float) -> dict[str, Any]:
    """A row of the table."""
    return {"figure": what, "one": one, "many": many, "ratio": many / one}


def bench_prefill(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        sessions = one_and_two_cores(stack, given.model)
        found = medians({k: lambda s=s: prefill_speed(s, given.prompt) for k, s in sessions.items()}, given.repeats)
    return [compared(f"prefill {given.prompt}: two cores against one", found["one"], found["two"])]


def bench_decode(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        sessions = one_and_two_cores(stack, given.model)
        cases = {k: lambda s=s: decode_speed(s, N_STREAMS, given.decode) for k, s in sessions.items()}
        found = medians(cases, given.repeats)
    return [compared(f"{N_STREAMS} streams: two cores against one", found["one"], found["two"])]


def bench_emulated(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        model = stack.enter_context(thin_model())
        some = {n: opened(stack, model, emulated(stack, n, *PREFILL_COST), 1) for n in (1, 3)}
        prefills = medians({n: lambda s=s: prefill_speed(s, given.prompt) for n, s in some.items()}, given.repeats)
        some = {n: opened(stack, model, emulated(stack, n, *DECODE_COST), 1) for n in (1, 3)}
        decodes = medians({n: lambda s=s: decode_speed(s, 9, given.decode) for n, s in some.items()}, given.repeats)
    return [
        compared(f"emulated prefill {given.prompt}: three workers against one", prefills[1], prefills[3]),
        compared("emulated 9 streams: three workers against one", decodes[1], decodes[3]),
    ]


def bench_groups(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with ExitStack() as outer:
        model = outer.enter_context(thin_model())
        for (fixed_ms, row_ms), rtt_ms in ((cost, rtt) for cost in GROUP_COSTS for rtt in RTTS_MS):
            with ExitStack() as stack:
                cases = {}
                for groups in (0, 1, 2, 3, 4, 5, 6, 9):
                    far = stack.enter_context(relayed(emulated(stack, 3, fixed_ms, row_ms), rtt_ms / 2))
                    session = opened(stack, model, far, 1, groups=groups)
                    cases[groups] = lambda session=session: decode_speed(session, 9, 40)
                found = medians(cases, given.repeats)
            best = max(found, key=lambda groups: found[groups] if groups else 0.0)
            what = f"9 streams, f={2 * fixed_ms:g} k={2 * row_ms:g} ms, {rtt_ms:g} ms RTT: best ({best}) against found"
            rows.append(compared(what, found[best], found[0]))
    return rows


def bench_streams(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        session = opened(stack, given.model, (), given.threads or len(os.sched_getaffinity(0)))
        cases = {n: lambda n=n: decode_speed(session, n, given.decode) for n in (1, N_STREAMS)}
        found = medians(cases, given.repeats)
    return [compared(f"{N_STREAMS} streams against one, this machine", found[1], found[N_STREAMS])]


def bench_gap(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Four streams; a foreign prompt comes when they have settled."""
    with ExitStack() as stack:
        session = opened(stack, given.model, (), given.threads or len(os.sched_getaffinity(0)), num_ctx=4608)
        vocabulary = session.model.network.vocab_size
        ratios, usuals, slows = [], [], []
        for _ in range(given.repeats + 1):
            streams = Streams(session, [random_prompt(8, vocabulary, next(_numbers)) for _ in range(4)], 400)
            while min(map(len, streams.times)) < 20:
                time.sleep(0.05)
            begun = time.monotonic()
            generate(session, random_prompt(given.foreign, vocabulary, next(_numbers)), 1)
            ended = time.monotonic()
            pairs = [pair for times in list(streams.times) for pair in pairwise(list(times)[3:])]
            usual = median([b - a for a, b in pairs if b < begun])
            during = sorted(b - a for a, b in pairs if a >= begun and b <= ended)
            streams.wait()
            usuals.append(usual * 1e3)
            slows.append(during[int(0.95 * len(during))] * 1e3)
            ratios.append(slows[-1] / usuals[-1])
    what = f"4 streams, foreign prompt of {given.foreign}: usual gap, p95 meanwhile (ms)"
    return [compared(what, median(usuals[1:]), median(usuals[1:]) * median(ratios[1:]))]


def bench_turns(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        session = opened(stack, given.model, (), given.threads or len(os.sched_getaffinity(0)), num_ctx=4608)
        firsts, seconds = [], []
        for _ in range(given.repeats + 1):
            vocabulary = session.model.network.vocab_size
            chat = random_prompt(3000, vocabulary, next(_numbers))
            streams = Streams(session, [chat], 20)
            started = time.monotonic()
            streams.wait()
            firsts.append(streams.times[0][0] - started)
            (answer,) = streams.finished
            assert isinstance(answer, Finished)
            asked = [*answer.context, *random_prompt(50, vocabulary, next(_numbers))]
            streams = Streams(session, [asked], 3)
            started = time.monotonic()
            streams.wait()
            seconds.append(streams.times[0][0] - started)
    return [compared("chat of 3000 tokens: first token of turn one, turn two (s)", median(firsts), median(seconds))]


BENCHES = {
    "prefill": bench_prefill,
    "decode": bench_decode,
    "emulated": bench_emulated,
    "groups": bench_groups,
    "streams": bench_streams,
    "gap": bench_gap,
    "turns": bench_turns,
}


def main() -> None:
    made = parser(__doc__, cluster=False, model=False)
    made.add_argument("what", nargs="+", choices=BENCHES)
    made.add_argument("--model", metavar="F.gguf|NAME", help="a GGUF file, or a model of the store")
    made.add_argument("--threads", type=int, default=0, help="threads of one machine alone (default: all cores)")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--prompt", type=int, default=2048, help="tokens of the prefill (default 2048)")
    made.add_argument("--foreign", type=int, default=4000, help="tokens of the foreign prompt (default 4000)")
    made.add_argument("--decode", type=int, default=32, help="tokens of each stream (default 32)")
    given = made.parse_args()
    if given.model is None and not {"emulated", "groups"}.issuperset(given.what):
        made.error("--model is needed for all but emulated and groups")
    rows = [row for what in given.what for row in BENCHES[what](given)]
    print_table(
        ["figure", "one", "many", "ratio"],
        [[row["figure"], f"{row['one']:.3g}", f"{row['many']:.3g}", f"{row['ratio']:.2f}"] for row in rows],
    )
    write_json(given.json, [{"model": given.model, "repeats": given.repeats, **row} for row in rows])


if __name__ == "__main__":
    run_main(main)

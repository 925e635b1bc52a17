"""Do more workers give more speed, and many requests more than one? Straight through the broker and the engine.

    bench_pipeline.py prefill decode --model F.gguf    one core against two: a worker of one thread on each
    bench_pipeline.py emulated                         three workers against one, whose layers are sleeps
    bench_pipeline.py groups                           the cost model's groups against every other number, 0 to 10 ms
    bench_pipeline.py streams --model F.gguf           8 streams against one on this machine, all its threads
    bench_pipeline.py gap --model F.gguf               tokens of running streams while a foreign prompt is prefilled
    bench_pipeline.py turns --model F.gguf             time to first token of a chat's second turn

"ideal" is what the cost model says of these f and k with nothing around them; "chosen" what it did with what was
measured: tokens of a chunk times microbatches in flight, or groups. Medians of rounds in
turns, after one that does not count. "One core" has all processes pinned to it, broker and head among them, and so have
"two cores" a worker each and share the rest: what a second machine adds, with nothing hidden.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench_generate import check_peer, peer
from common import (
    Session,
    generate,
    interleaved,
    median,
    parser,
    pinned,
    print_table,
    relayed,
    resolve_model,
    run_main,
    write_json,
)
from streams import Streams, decode_speed, fresh_prompt, prefill_speed
from synthetic_model import Shape, tensors, write

from ollama_zmq.bus.broker import Broker
from ollama_zmq.bus.loads import LoadRequest
from ollama_zmq.cli.children import Children, free_port, is_listening
from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import Pacing, StageCost

N_STREAMS = 8
MAX_TOKENS = 512
PEER_WAYS = ("plain", "repacked")
THIN = Shape(6, 256, 4, 2, 512, tied=True, context_length=4096)
# f and k in ms per layer. The first takes a worker of THIN as long as a third of a 1B Q4_K_M takes one Zen 4 thread:
# 9.9 ms for 3 rows, and three times as many layers 71 ms for 9.
THREE_COSTS = ((1.5, 1.14), (1.5, 1.5))
GROUP_COSTS = ((0.5, 0.5), (2.0, 0.03))  # like a CPU, like a GPU; per layer
RTTS_MS = (0.0, 2.0, 10.0)
EMULATOR = Path(__file__).with_name("emulated_worker.py")


def opened(
    stack: ExitStack, model: str, workers: Sequence[str], threads: int, *, groups: int = 0, num_ctx: int = 2304
) -> Session:
    """A broker with *model* over *workers*, until *stack* ends."""
    path, blob = resolve_model(model)
    request = LoadRequest(
        model, path, num_ctx, blob, tuple(workers), MAX_TOKENS, num_parallel=9, max_in_flight=groups, speculate=False
    )
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
    layer_macs = sum(t.rows * t.columns for t in tensors(THIN, "q8_0", 1) if t.kind and t.name.startswith("blk.0."))
    for port in ports:
        command = [sys.executable, str(EMULATOR), str(port), str(fixed_ms), str(row_ms), str(layer_macs)]
        children.run(command, EMULATOR.name).wait_until(lambda port=port: is_listening(port))
    return [f"127.0.0.1:{port}" for port in ports]


@contextmanager
def thin_model() -> Iterator[str]:
    """A file with six small layers and a small vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "thin.gguf")
        write(path, THIN, "q8_0", 1024, 1)
        yield str(path)


def medians(cases: dict[Any, Callable[[], float]], repeats: int) -> dict[Any, float]:
    """The median of each case over the rounds after the first."""
    return {name: median(values[1:]) for name, values in interleaved(cases, repeats + 1).items()}


def compared(what: str, one: float, many: float, plans: str = "", ideal: float = 0.0) -> dict[str, Any]:
    """A row of the table."""
    return {"figure": what, "one": one, "many": many, "ratio": many / one, "ideal": ideal, "plans": plans}


def plans(sessions: Iterable[Session], decoding: int, prompt: int) -> str:
    """What the cost model chose for each: chunks of tokens times microbatches in flight, or groups."""
    chosen = [session.broker.pacing(session.model).plan(decoding, prompt) for session in sessions]
    return ", ".join(f"{plan.chunk} x {plan.depth}" if prompt else f"{plan.groups} groups" for plan in chosen)


def ideal(cost: tuple[float, float], n_workers: int, decoding: int, prompt: int) -> float:
    """Seconds of a round of *decoding* streams, or of a prompt, over stages of *cost* with nothing around them."""
    line = Line(cost[0] * THIN.n_layers / n_workers / 1e3, cost[1] * THIN.n_layers / n_workers / 1e3)
    pacing = Pacing([StageCost(f"w{i}", line, Line(0.0, 0.0)) for i in range(n_workers)], max_tokens=MAX_TOKENS)
    plan = pacing.plan(decoding, prompt)
    return pacing.prefill_s(prompt, plan.chunk) if prompt else pacing.round_s(decoding, plan.groups)


def bench_prefill(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        some = one_and_two_cores(stack, given.model)
        found = medians({k: lambda s=s: prefill_speed(s, given.prompt) for k, s in some.items()}, given.repeats)
        chosen = plans(some.values(), 0, given.prompt)
    return [compared(f"prefill {given.prompt}: two cores against one", found["one"], found["two"], chosen)]


def bench_decode(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        some = one_and_two_cores(stack, given.model)
        cases = {k: lambda s=s: decode_speed(s, N_STREAMS, given.decode) for k, s in some.items()}
        found = medians(cases, given.repeats)
        chosen = plans(some.values(), N_STREAMS, 0)
    return [compared(f"{N_STREAMS} streams: two cores against one", found["one"], found["two"], chosen)]


def bench_emulated(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with ExitStack() as outer:
        model = outer.enter_context(thin_model())
        for cost in THREE_COSTS:
            with ExitStack() as stack:
                some = {n: opened(stack, model, emulated(stack, n, *cost), 1) for n in (1, 3)}
                for what, decoding, prompt in ((f"prefill {given.prompt}", 0, given.prompt), ("9 streams", 9, 0)):
                    cases = {n: speed_of(session, decoding, prompt, given.decode) for n, session in some.items()}
                    found, best = medians(cases, given.repeats), [ideal(cost, n, decoding, prompt) for n in (1, 3)]
                    name = f"emulated {what}, f/k = {cost[0] / cost[1]:.1f}: three workers against one"
                    chosen = plans(some.values(), decoding, prompt)
                    rows.append(compared(name, found[1], found[3], chosen, best[0] / best[1]))
    return rows


def speed_of(session: Session, decoding: int, prompt: int, n_tokens: int) -> Callable[[], float]:
    """Measures a prefill of *prompt* tokens, or *decoding* streams."""
    return lambda: prefill_speed(session, prompt) if prompt else decode_speed(session, decoding, n_tokens)


def bench_groups(given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with ExitStack() as outer:
        model = outer.enter_context(thin_model())
        for (fixed_ms, row_ms), rtt_ms in ((cost, rtt) for cost in GROUP_COSTS for rtt in RTTS_MS):
            with ExitStack() as stack:
                some = {}
                for groups in (0, 1, 2, 3, 4, 5, 6, 9):
                    far = stack.enter_context(relayed(emulated(stack, 3, fixed_ms, row_ms), rtt_ms / 2))
                    some[groups] = opened(stack, model, far, 1, groups=groups)
                found = medians({k: lambda s=s: decode_speed(s, 9, 40) for k, s in some.items()}, given.repeats)
                chosen = plans([some[0]], 9, 0)
            best = max(found, key=lambda groups: found[groups] if groups else 0.0)
            what = f"9 streams, f={2 * fixed_ms:g} k={2 * row_ms:g} ms, {rtt_ms:g} ms RTT: best ({best}) against found"
            rows.append(compared(what, found[best], found[0], chosen))
    return rows


def alone(stack: ExitStack, given: argparse.Namespace, num_ctx: int = 2304) -> Session:
    """The model on this machine alone, with all its threads unless told otherwise."""
    return opened(stack, given.model, (), given.threads or len(os.sched_getaffinity(0)), num_ctx=num_ctx)


def bench_streams(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        session = alone(stack, given)
        cases = {str(n): lambda n=n: decode_speed(session, n, given.decode) for n in (1, N_STREAMS)}
        if given.peer_python:
            cases |= peer_cases(stack, given, session)
        found = medians(cases, given.repeats)
    many = found[str(N_STREAMS)]
    rows = [compared(f"{N_STREAMS} streams against one, this machine", found["1"], many)]
    if given.peer_python:
        best = max(found[way] for way in PEER_WAYS)
        rows.append(compared(f"{N_STREAMS} streams, against llama.cpp's", best, many))
    return rows


def peer_cases(stack: ExitStack, given: argparse.Namespace, session: Session) -> dict[str, Callable[[], float]]:
    """Measures llama.cpp's streams, decoded together as its server does, for each way it can hold weights."""
    check_peer(given.peer_python)
    threads = given.threads or len(os.sched_getaffinity(0))
    ask = stack.enter_context(peer(given, threads, context=2304 * N_STREAMS, streams=N_STREAMS))

    def measure(way: str) -> float:
        prompts = [fresh_prompt(session, 1) for _ in range(N_STREAMS)]
        took = ask({"streams": prompts, "n_decode": given.decode, "way": way})
        return N_STREAMS * given.decode / float(took["decode_s"])

    return {way: lambda way=way: measure(way) for way in PEER_WAYS}


def bench_gap(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Four streams; a foreign prompt comes when they have settled."""
    with ExitStack() as stack:
        session = alone(stack, given, num_ctx=4608)
        usuals, slows = [], []
        for _ in range(given.repeats + 1):
            streams = Streams(session, [fresh_prompt(session, 8) for _ in range(4)], 400)
            while min(map(len, streams.pieces)) < 20:
                time.sleep(0.05)
            begun = time.monotonic()
            generate(session, fresh_prompt(session, given.foreign), 1)
            ended = time.monotonic()
            streams.finished()
            usuals.append(1e3 * median(streams.gaps(until=begun)))
            during = sorted(streams.gaps(begun, ended))
            slows.append(1e3 * during[int(0.95 * len(during))])
        chosen = plans([session], 4, given.foreign)
    slow = median(usuals[1:]) * median([b / a for a, b in zip(usuals[1:], slows[1:], strict=True)])
    what = f"4 streams, foreign prompt of {given.foreign}: usual gap, p95 meanwhile (ms)"
    return [compared(what, median(usuals[1:]), slow, chosen)]


def bench_turns(given: argparse.Namespace) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        session, firsts, seconds = alone(stack, given, num_ctx=4608), [], []
        for _ in range(given.repeats + 1):
            first = generate(session, fresh_prompt(session, 3000), 20)
            second = generate(session, [*first.context, *fresh_prompt(session, 50)], 3)
            firsts.append(first.prefill_s)
            seconds.append(second.prefill_s)
    what = "chat of 3000 tokens: first token of turn one, turn two (s)"
    return [compared(what, median(firsts[1:]), median(seconds[1:]))]


BENCHES = {
    "prefill": bench_prefill,
    "decode": bench_decode,
    "emulated": bench_emulated,
    "groups": bench_groups,
    "streams": bench_streams,
    "gap": bench_gap,
    "turns": bench_turns,
}


def cells(row: dict[str, Any]) -> list[str]:
    """A row as it is printed."""
    best = f"{row['ideal']:.2f}" if row["ideal"] else ""
    return [row["figure"], f"{row['one']:.3g}", f"{row['many']:.3g}", f"{row['ratio']:.2f}", best, row["plans"]]


def main() -> None:
    made = parser(__doc__, cluster=False, model=False)
    made.add_argument("what", nargs="+", choices=BENCHES)
    made.add_argument("--model", metavar="F.gguf|NAME", help="a GGUF file, or a model of the store")
    made.add_argument("--threads", type=int, default=0, help="threads of one machine alone (default: all cores)")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--prompt", type=int, default=2048, help="tokens of the prefill (default 2048)")
    made.add_argument("--foreign", type=int, default=4000, help="tokens of the foreign prompt (default 4000)")
    made.add_argument("--decode", type=int, default=32, help="tokens of each stream (default 32)")
    made.add_argument("--peer-python", metavar="PYTHON", help="streams: beside llama.cpp, which this Python has")
    given = made.parse_args()
    given.workers = 0
    if given.model is None and not {"emulated", "groups"}.issuperset(given.what):
        made.error("--model is needed for all but emulated and groups")
    rows = [row for what in given.what for row in BENCHES[what](given)]
    print_table(["figure", "one", "many", "ratio", "ideal", "chosen"], [cells(row) for row in rows])
    write_json(given.json, [{"model": given.model, "repeats": given.repeats, **row} for row in rows])


if __name__ == "__main__":
    run_main(main)

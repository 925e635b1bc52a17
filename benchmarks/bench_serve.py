"""How does the server treat many clients? Time to first token, between tokens, tokens per second, fairness, memory.

    bench_serve.py --model F.gguf --clients 64 --seconds 200          64 clients that ask again and again
    bench_serve.py --model F.gguf --rate 2 --requests 100             clients that come at random, two a second
    bench_serve.py --model F.gguf --chat --turns 2 --prompt 3000      what a second turn costs
    bench_serve.py --model F.gguf --direct --requests 5               what HTTP costs: beside the broker, in turns
    bench_serve.py --model F.gguf --load-beside G.gguf --requests 5   what a stream sees while another model is loaded
    bench_serve.py --model NAME --url http://127.0.0.1:11434          a server that runs already

TTFT: from the request to the first line with text, or to the end of an answer without any. Gaps: between two lines of
one answer. Fairness: of the fastest client to the slowest, in a closed loop with --seconds; fairness counts tokens in
all that time, so who drew short answers and hence waits for more first tokens looks slow; decode_fairness counts them
between the first and the last token of each answer. Memory: resident bytes of a server started here; growth from a
fifth of the time (or one minute, if that is less) to the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    check_matplotlib,
    generate,
    loaded_broker,
    median,
    parser,
    print_table,
    relayed,
    resolve_model,
    run_main,
    worker_addresses,
    write_json,
)
from http_clients import Answer, Load, arrivals, closed_loop, generated_prompt
from load_beside import gaps_beside_loads
from serve_figures import Samples, sampled_memory, summary

from ollama_zmq.cli.children import Children
from ollama_zmq.errors import RequestError
from ollama_zmq.store.create import Recipe
from ollama_zmq.store.models import Store


def main() -> None:
    given = arguments()
    with running_server(given) as (url, model, pid):
        load = Load(url, model, options(given), prompts(given), given.chat, given.turns, raw=given.direct)
        closed_loop(load, 1, iter([10**6]))  # loads the model
        record = measured(given, load, pid)
    write_json(given.json, [record])


def measured(given: argparse.Namespace, load: Load, pid: int) -> dict[str, Any]:
    """The record of the mode that was asked for."""
    if given.load_beside:
        figures = gaps_beside_loads(load, "beside" if pid else given.load_beside, given.num_ctx, given.requests)
        record = {"model": given.model, "beside": given.load_beside, "workers": given.workers, **figures}
        report(record)
        return record
    return against_broker(given, load) if given.direct else under_load(given, load, pid)


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--url", help="a server that runs already and has --model")
    made.add_argument("--clients", type=int, default=1, help="of the closed loop (default 1)")
    made.add_argument("--rate", type=float, default=0.0, help="arrivals per second instead of a closed loop")
    made.add_argument("--requests", type=int, default=0, help="conversations in all (default: one per client)")
    made.add_argument("--seconds", type=float, default=0.0, help="stop then, wherever the clients are")
    made.add_argument("--chat", action="store_true", help="/api/chat instead of /api/generate")
    made.add_argument("--turns", type=int, default=1, help="questions of a conversation; needs --chat")
    made.add_argument("--prompt", type=int, default=64, help="words of a generated prompt, about a token each")
    made.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt per line instead, in turns")
    made.add_argument("--decode", type=int, default=128, help="tokens of an answer (default 128)")
    made.add_argument("--temperature", type=float, default=0.8)
    made.add_argument("--num-ctx", type=int, default=0, help="context of a sequence (default: what is needed)")
    made.add_argument("--parallel", type=int, default=0, help="OLLAMA_NUM_PARALLEL of the server (default: its own)")
    made.add_argument("--delay-ms", type=float, default=0.0, help="one way to every worker, by a relay")
    made.add_argument("--direct", action="store_true", help="one client, and the broker of this process in turns")
    made.add_argument("--load-beside", default="", metavar="G.gguf|NAME", help="load this --requests times meanwhile")
    made.add_argument("--plot", type=Path, metavar="OUT.png", help="draw the result; needs matplotlib")
    given = made.parse_args()
    if given.turns > 1 and not given.chat:
        made.error("--turns needs --chat")
    given.requests = given.requests or (0 if given.seconds else max(given.clients, 1))
    given.num_ctx = given.num_ctx or (given.prompt + given.decode + 64) * given.turns
    if given.plot:
        check_matplotlib()
    return given


def options(given: argparse.Namespace) -> dict[str, Any]:
    return {"num_predict": given.decode, "num_ctx": given.num_ctx, "temperature": given.temperature}


def prompts(given: argparse.Namespace) -> Any:
    """The function that gives the n-th prompt."""
    if given.prompts is None:
        return lambda n: generated_prompt(given.prompt, n)
    lines = [line for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise RequestError(f"{given.prompts}: no prompt in it, there must be one per line")
    return lambda n: lines[n % len(lines)]


@contextmanager
def running_server(given: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """URL, model name and process id (0: not ours) of the server to measure."""
    if given.url:
        yield given.url, given.model, 0
        return
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        store = Store(Path(folder))
        path, _ = resolve_model(given.model)
        store.create("measured", Recipe(files={path.name: store.blobs.add_file(path).digest}))
        if given.load_beside:
            path, _ = resolve_model(given.load_beside)
            store.create("beside", Recipe(files={path.name: store.blobs.add_file(path).digest}))
        env = {"OLLAMA_MODELS": folder, "OLLAMA_MAX_QUEUE": "100000", "OLLAMA_KEEP_ALIVE": "-1"}
        env |= {"OLLAMA_NUM_PARALLEL": str(given.parallel)} if given.parallel else {}
        with (
            worker_addresses(given.rpc, given.workers, given.threads) as addresses,
            relayed(addresses, given.delay_ms) as reached,
        ):
            yield children.start_server(reached, env=env), "measured", children.running[-1].pid


def under_load(given: argparse.Namespace, load: Load, pid: int) -> dict[str, Any]:
    """Let the clients run, report, draw, and return the record."""
    begun = time.monotonic()
    ends = begun + given.seconds if given.seconds else float("inf")
    load = replace(load, until=ends)
    with sampled_memory(pid) as samples:
        if given.rate:
            answers = arrivals(load, given.rate, range(given.requests or int(given.rate * given.seconds)))
        else:
            answers = closed_loop(load, given.clients, islice(count(), given.requests or None))
        took_s = time.monotonic() - begun
    record = summary(answers, took_s, samples, given)
    report(record)
    if given.plot:
        plot(given.plot, Path(given.model).name, answers, begun, samples)
    return record


def report(record: dict[str, Any]) -> None:
    """Every figure that is there, one a line."""
    print_table(["figure", "value"], [[name, value] for name, value in record.items() if value is not None])


def against_broker(given: argparse.Namespace, load: Load) -> dict[str, Any]:
    """Decode speed over HTTP and straight through a broker with the same prompts, in turns."""
    servers: list[float] = []
    brokers: list[float] = []
    with (
        worker_addresses(given.rpc, given.workers, given.threads) as workers,
        loaded_broker(given.model, workers, threads=given.threads, num_ctx=given.num_ctx, speculate=True) as session,
    ):
        tokenizer = session.model.tokenizer
        assert tokenizer is not None
        for n in range(given.requests + 1):
            (answer,) = closed_loop(load, 1, iter([n]))
            token_ids = tokenizer.encode(load.prompts(n), add_special=True, parse_special=True)
            finished = generate(session, token_ids, given.decode, temperature=given.temperature, seed=n)
            if n:  # the first one warms up
                servers.append(answer.tokens_per_s)
                brokers.append((finished.output_tokens - 1) / finished.decode_s)
    record = {
        "model": given.model,
        "requests": given.requests,
        "server_tokens_per_s": median(servers),
        "broker_tokens_per_s": median(brokers),
        "overhead_pct": 100 * median([1 - server / broker for server, broker in zip(servers, brokers, strict=True)]),
    }
    print_table(["figure", "value"], [[k, round(v, 4) if isinstance(v, float) else v] for k, v in record.items()])
    return record


def plot(out: Path, title: str, answers: Sequence[Answer], begun: float, samples: Samples) -> None:
    """Draw TTFT and gaps over the time, and the memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(title)
    upper, lower = figure.subplots(2, 1, sharex=True)
    good = [answer for answer in answers if answer.times]
    ends = np.concatenate([answer.times[1:] for answer in good]) - begun
    upper.plot(ends, np.concatenate([np.diff(answer.times) for answer in good]) * 1e3, ",", label="between tokens")
    upper.plot([a.times[0] - begun for a in good], [1e3 * a.ttft_s for a in good], "o", ms=3, label="to first token")
    upper.set(ylabel="ms", yscale="log")
    upper.legend()
    lower.plot([seconds for seconds, _ in samples], [nbytes / 1e6 for _, nbytes in samples])
    lower.set(xlabel="s", ylabel="resident MB of the server", ylim=(0, None))
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    run_main(main)

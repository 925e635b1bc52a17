"""What does guessing tokens bring? The same texts with and without, in turns, over workers behind a slow link.

    bench_speculation.py --model SmolLM2.gguf --workers 2 --threads 1 --delay-ms 10      20 ms round trip per hop
    bench_speculation.py --model SmolLM2.gguf --threads 2                                this machine alone

code: a program is written again with one name changed, greedily; the answer of a chat whose first line is given,
because the small models that this is measured with need that. prose: a story, at temperature 0.8. The texts with and
without guesses must be equal. Medians over the repeats of the decode speed, after one round that does not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from common import (
    Session,
    generate,
    interleaved,
    loaded_broker,
    median,
    parser,
    print_table,
    relayed,
    run_main,
    worker_addresses,
    write_json,
)

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import OllamaZmqError

PROGRAM = """
def shrink(values, {name}):
    result = []
    for value in values:
        if value > {name}:
            result.append(value - {name})
        elif value < -{name}:
            result.append(value + {name})
        else:
            result.append(0)
    return result

def report(values, {name}):
    before = sum(values)
    after = sum(shrink(values, {name}))
    print("before:", before)
    print("after:", after)
    return shrink(values, {name}), after - before

def compare(first, second, {name}):
    one, two = shrink(first, {name}), shrink(second, {name})
    for a, b in zip(one, two):
        if a != b:
            return False
    return True
"""
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "code": (
        "<|im_start|>user\nRepeat this program with the variable `limit` renamed to `bound`:\n\n"
        f"```python{PROGRAM.format(name='limit')}```<|im_end|>\n<|im_start|>assistant\n"
        "Here is the program with the variable renamed:\n\n```python\ndef shrink(values, bound):",
        {"temperature": 0.0},
    ),
    "prose": (
        "It was late in autumn when the old woman first saw the light on the hill. She put her basket down and",
        {"temperature": 0.8, "seed": 1},
    ),
}


def main() -> None:
    given = arguments()
    with ExitStack() as stack:
        sessions = {}
        for guessing in (False, True):
            workers = stack.enter_context(worker_addresses(given.rpc, given.workers, given.threads))
            reached = stack.enter_context(relayed(workers, given.delay_ms))
            loaded = loaded_broker(given.model, reached, threads=given.threads, num_ctx=2048, speculate=guessing)
            sessions[guessing] = stack.enter_context(loaded)
        cases = {
            (text, guessing): case(session, *TEXTS[text], given.decode)
            for text in TEXTS
            for guessing, session in sessions.items()
        }
        for run in cases.values():
            run()
        measured = interleaved(cases, given.repeats)
    records = [record(given, text, measured[text, False], measured[text, True]) for text in TEXTS]
    names = ["text", "plain_tokens_per_s", "guessing_tokens_per_s", "ratio", "tokens", "drafted", "accepted"]
    print_table(names, [[record[name] for name in names] for record in records])
    write_json(given.json, records)


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--delay-ms", type=float, default=0.0, help="one way to every worker, by a relay")
    made.add_argument("--decode", type=int, default=160, help="tokens of a text at most (default 160)")
    made.add_argument("--repeats", type=int, default=3)
    return made.parse_args()


def case(session: Session, text: str, sampling: dict[str, Any], n_tokens: int) -> Callable[[], Finished]:
    """A function that generates the continuation of *text*."""
    tokenizer = session.model.tokenizer
    if tokenizer is None:
        raise OllamaZmqError("the model file has no vocabulary, so it cannot read the texts")
    token_ids = tokenizer.encode(text, add_special=True, parse_special=True)
    return lambda: generate(session, token_ids, n_tokens, **sampling)


def record(given: argparse.Namespace, text: str, plain: list[Finished], guessing: list[Finished]) -> dict[str, Any]:
    """The figures of one text.

    Raises:
        OllamaZmqError: guesses changed it.
    """
    if len({finished.context for finished in (*plain, *guessing)}) > 1:
        raise OllamaZmqError(f"{text}: the text with guesses is another one")
    speeds = [median([speed(finished) for finished in runs]) for runs in (plain, guessing)]
    return {
        "text": text,
        "model": given.model,
        "workers": given.workers,
        "delay_ms": given.delay_ms,
        "plain_tokens_per_s": speeds[0],
        "guessing_tokens_per_s": speeds[1],
        "ratio": round(speeds[1] / speeds[0], 3),
        "tokens": guessing[0].output_tokens,
        "drafted": round(median([finished.drafted for finished in guessing])),
        "accepted": round(median([finished.accepted for finished in guessing])),
    }


def speed(finished: Finished) -> float:
    """Tokens per second of the decode."""
    return (finished.output_tokens - 1) / finished.decode_s


if __name__ == "__main__":
    run_main(main)

"""What does guessing tokens bring? The same texts with and without, in turns, over workers behind a slow link.

    bench_speculation.py --model SmolLM2.gguf --workers 2 --threads 1 --delay-ms 10      20 ms round trip per hop
    bench_speculation.py --model SmolLM2.gguf --threads 2                                this machine alone

Every text greedily, and with ``--seeds`` seeds at temperature 0.8. With and without guesses it must be the same text.
Speeds are those of the decode, medians over the repeats, after one text that does not count; of several seeds the
median ratio counts. Texts of less than LEAST tokens are left out: what ends at once says nothing.
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
from speculation_texts import CODE, PROSE

from ollama_zmq.engine.requests import Finished
from ollama_zmq.errors import OllamaZmqError

TEXTS = CODE | PROSE
GREEDY = 0  # in place of a seed
LEAST = 24
Runs = dict[tuple[str, int, bool], list[Finished]]  # text, seed, whether it was guessed


def main() -> None:
    given = arguments()
    texts = given.texts.split(",") if given.texts else list(TEXTS)
    with ExitStack() as stack:
        sessions = {guessing: stack.enter_context(session(stack, given, guessing)) for guessing in (False, True)}
        cases = {
            (text, seed, guessing): case(sessions[guessing], TEXTS[text], seed, given.decode)
            for text in texts
            for seed in range(given.seeds + 1)
            for guessing in sessions
        }
        for guessing in sessions:
            cases[texts[0], GREEDY, guessing]()
        runs = interleaved(cases, given.repeats)
    records = [record(given, text, seeds, runs) for text in texts for seeds in (range(1), range(1, given.seeds + 1))]
    records = [found for found in records if found is not None]
    names = ["text", "temperature", "plain_tokens_per_s", "ratio", "least_ratio", "tokens", "drafted", "accepted"]
    rows = [[f"{found[name]:.2f}" if "ratio" in name else found[name] for name in names] for found in records]
    print_table(names, rows)
    write_json(given.json, records)


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--delay-ms", type=float, default=0.0, help="one way to every worker, by a relay")
    made.add_argument("--decode", type=int, default=160, help="tokens of a text at most (default 160)")
    made.add_argument("--repeats", type=int, default=1)
    made.add_argument("--seeds", type=int, default=2, help="texts at temperature 0.8 (default 2)")
    made.add_argument("--texts", default="", help=f"some of {','.join(TEXTS)} (default: all)")
    return made.parse_args()


def session(stack: ExitStack, given: argparse.Namespace, guessing: bool) -> Any:
    """A broker over workers of its own."""
    workers = stack.enter_context(worker_addresses(given.rpc, given.workers, given.threads))
    reached = stack.enter_context(relayed(workers, given.delay_ms))
    return loaded_broker(given.model, reached, threads=given.threads, num_ctx=2048, speculate=guessing)


def case(session: Session, text: str, seed: int, n_tokens: int) -> Callable[[], Finished]:
    """A function that generates the continuation of *text*."""
    tokenizer = session.model.tokenizer
    if tokenizer is None:
        raise OllamaZmqError("the model file has no vocabulary, so it cannot read the texts")
    token_ids = tokenizer.encode(text, add_special=True, parse_special=True)
    temperature = 0.0 if seed == GREEDY else 0.8
    return lambda: generate(session, token_ids, n_tokens, temperature=temperature, seed=seed)


def record(given: argparse.Namespace, text: str, seeds: range, runs: Runs) -> dict[str, Any] | None:
    """The figures of one text over *seeds*; None if it was too short with all of them.

    Raises:
        OllamaZmqError: guesses changed it.
    """
    plain, guessing = ({seed: runs[text, seed, guessed] for seed in seeds} for guessed in (False, True))
    for seed in seeds:
        if len({finished.context for finished in (*plain[seed], *guessing[seed])}) > 1:
            raise OllamaZmqError(f"{text}, seed {seed}: the text with guesses is another one")
    long = [seed for seed in seeds if plain[seed][0].output_tokens >= LEAST]
    if not long:
        return None
    ratios = [speed(guessing[seed]) / speed(plain[seed]) for seed in long]
    return {
        "text": text,
        "temperature": 0.0 if long[0] == GREEDY else 0.8,
        "model": given.model,
        "workers": given.workers,
        "delay_ms": given.delay_ms,
        "plain_tokens_per_s": median([speed(plain[seed]) for seed in long]),
        "guessing_tokens_per_s": median([speed(guessing[seed]) for seed in long]),
        "ratio": round(median(ratios), 3),
        "least_ratio": round(min(ratios), 3),
        "tokens": sum(guessing[seed][0].output_tokens for seed in long),
        "drafted": sum(guessing[seed][-1].drafted for seed in long),
        "accepted": sum(guessing[seed][-1].accepted for seed in long),
    }


def speed(runs: list[Finished]) -> float:
    """Tokens per second of the decode, the median of *runs*."""
    return median([(finished.output_tokens - 1) / finished.decode_s for finished in runs])


if __name__ == "__main__":
    run_main(main)

"""What the answers of many clients come to: times, fairness, and the memory of the server meanwhile."""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
from http_clients import Answer

from ollama_zmq.errors import OllamaZmqError

SAMPLE_S = 0.5
Samples = list[tuple[float, int]]  # seconds since the start, resident bytes


@contextmanager
def sampled_memory(pid: int) -> Iterator[Samples]:
    """Resident memory of a process while the block runs."""
    samples: Samples = []
    over = threading.Event()
    begun = time.monotonic()

    def sample() -> None:
        samples.append((time.monotonic() - begun, psutil.Process(pid).memory_info().rss))
        while not over.wait(SAMPLE_S):
            samples.append((time.monotonic() - begun, psutil.Process(pid).memory_info().rss))

    sampler = threading.Thread(target=sample)
    if pid:
        sampler.start()
    try:
        yield samples
    finally:
        over.set()
        if pid:
            sampler.join()


def summary(answers: Sequence[Answer], took_s: float, samples: Samples, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of *answers*; times in ms."""
    good = [answer for answer in answers if answer.times and not answer.error]
    if not good:
        raise OllamaZmqError(f"no answer of {len(answers)}: {answers[0].error if answers else 'nobody asked'}")
    gaps = np.concatenate([np.diff(answer.times) for answer in good]) * 1e3
    by_client = Counter[int]()
    for answer in good:
        by_client[answer.client] += len(answer.times)
    tokens = sum(answer.tokens for answer in good)
    record: dict[str, Any] = {
        "model": given.model,
        "clients": len(by_client),
        "rate": given.rate,
        "seconds": took_s,
        "answers": len(good),
        "tokens": tokens,
        "tokens_per_s": tokens / took_s,
        "tokens_per_s_per_client": tokens / took_s / len(by_client),
        **(fairness(good) if given.seconds and not given.rate else {}),
        "errors": dict(Counter(answer.error for answer in answers if answer.error)),
        **{f"gap_p{p}_ms": float(np.percentile(gaps, p)) if len(gaps) else 0.0 for p in (50, 95, 99)},
        **memory_figures(samples),
    }
    for turn in range(given.turns):
        ttft = [1e3 * answer.ttft_s for answer in good if answer.turn == turn]
        record |= {f"ttft{turn + 1}_p{p}_ms": float(np.percentile(ttft, p)) if ttft else None for p in (50, 95, 99)}
    return record


def fairness(answers: Sequence[Answer]) -> dict[str, float]:
    """The fastest client to the slowest, by tokens in all and by tokens per second of decoding; answers of one."""
    tokens, decoded, seconds = Counter[int](), Counter[int](), defaultdict[int, float](float)
    for answer in answers:
        tokens[answer.client] += len(answer.times)
        decoded[answer.client] += len(answer.times) - 1
        seconds[answer.client] += answer.times[-1] - answer.times[0]
    speeds = [decoded[client] / seconds[client] for client in decoded if seconds[client]]
    return {
        "fairness": max(tokens.values()) / min(tokens.values()),
        "decode_fairness": max(speeds) / min(speeds),
        "answers_per_client": len(answers) / len(tokens),
    }


def memory_figures(samples: Samples) -> dict[str, Any]:
    """Peak of resident memory, and its growth once everything was in use."""
    if not samples:
        return {"rss_peak_bytes": None, "rss_growth_bytes": None}
    settled = min(60.0, samples[-1][0] / 5)
    at = next(nbytes for seconds, nbytes in samples if seconds >= settled)
    return {"rss_peak_bytes": max(nbytes for _, nbytes in samples), "rss_growth_bytes": samples[-1][1] - at}

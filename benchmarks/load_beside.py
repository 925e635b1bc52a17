"""The gaps between the tokens of a running stream while another model is loaded beside it, and while none is.

One client reads one long answer after another. Meanwhile the other model is loaded and unloaded, with a pause as long
as the load took between two loads; a gap belongs to a load when any part of it lies in one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import count, pairwise
from typing import Any

import httpx
import numpy as np
from http_clients import Answer, Load, closed_loop

from ollama_zmq.errors import OllamaZmqError

WARM_UP_S = 1.0
LEAST_PAUSE_S = 2.0
PERCENTILES = (50, 95, 99, 100)


def gaps_beside_loads(load: Load, other: str, num_ctx: int, n_loads: int) -> dict[str, Any]:
    """Percentiles in ms, with loads of *other* and without, and the median of seconds that a load took."""
    answers: list[Answer] = []
    over = threading.Event()
    reading = threading.Thread(target=lambda: answers.extend(_read_until(load, over)))
    reading.start()
    try:
        time.sleep(WARM_UP_S)
        loads = [_load_once(load.url, other, num_ctx) for _ in range(n_loads)]
    finally:
        over.set()
        reading.join()
    return _figures(answers, loads)


def _read_until(load: Load, over: threading.Event) -> list[Answer]:
    answers: list[Answer] = []
    for number in count():
        if over.is_set():
            return answers
        answers += closed_loop(load, 1, iter([number]))
    return answers


def _load_once(url: str, other: str, num_ctx: int) -> tuple[float, float]:
    """When the load began and ended; the model is gone when this returns, and others had some time without it."""
    with httpx.Client(base_url=url, timeout=600.0, trust_env=False) as http:
        begun = time.monotonic()
        answer = http.post("/api/generate", json={"model": other, "options": {"num_ctx": num_ctx}})
        ended = time.monotonic()
        if answer.status_code != 200:
            raise OllamaZmqError(f"{other}: {answer.text}")
        time.sleep(max(ended - begun, LEAST_PAUSE_S))
        http.post("/api/generate", json={"model": other, "keep_alive": 0})
    return begun, ended


def _figures(answers: Sequence[Answer], loads: Sequence[tuple[float, float]]) -> dict[str, Any]:
    beside, alone = list[float](), list[float]()
    for answer in answers:
        if answer.error:
            raise OllamaZmqError(answer.error)
        for before, after in pairwise(answer.times):
            is_beside = any(before < ended and after > begun for begun, ended in loads)
            (beside if is_beside else alone).append(1e3 * (after - before))
    return {
        "load_s": float(np.median([ended - begun for begun, ended in loads])),
        **{f"alone_gap_p{p}_ms": float(np.percentile(alone, p)) for p in PERCENTILES},
        **{f"beside_gap_p{p}_ms": float(np.percentile(beside, p)) for p in PERCENTILES},
        "tokens_alone": len(alone),
        "tokens_beside": len(beside),
    }

"""Clients that read streamed answers over HTTP and note when each line came.

A thread per client and the standard library's client: what they compute is taken from the server they measure, so it is
a line read, parsed and timed, and nothing else.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 240.0
WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")


@dataclass(slots=True)
class Answer:
    """One request as its client saw it. Times are monotonic.

    Attributes:
        turn: 0 for the first question of a conversation.
        times: of each line that brought text.
        tokens: what the server counted; of an answer that was cut off, its lines.
        error: "" if it ended as it should.
    """

    client: int
    turn: int
    asked_at: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.times[0] - self.asked_at

    @property
    def tokens_per_s(self) -> float:
        """Of the decode alone, as a client sees it."""
        return (self.tokens - 1) / (self.times[-1] - self.times[0])


def generated_prompt(n_words: int, seed: int) -> str:
    """About *n_words* tokens; two seeds share no beginning worth caching."""
    draw = random.Random(seed)
    return f"{seed} " + " ".join(draw.choices(WORDS, k=n_words))


def ask(url: str, path: str, body: dict[str, Any], answer: Answer, until: float = float("inf")) -> None:
    """Post *body* and read the stream into *answer*, or leave in the middle of it at the time *until*."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        while (line := response.readline()) and time.monotonic() < until:
            _note(answer, json.loads(line), time.monotonic())
    except (OSError, HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def _note(answer: Answer, line: dict[str, Any], now: float) -> None:
    if "error" in line:
        answer.error = str(line["error"])
        return
    text = line.get("response") or line.get("message", {}).get("content", "")
    if text or (line.get("done") and not answer.times):  # an answer may be nothing but its end
        answer.times.append(now)
        answer.text += text
        answer.tokens += 1
    if line.get("done"):
        answer.tokens = line.get("eval_count", answer.tokens)


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients do.

    Attributes:
        prompts: the text of the n-th question.
        chat: ask ``/api/chat``, *turns* questions to a conversation; else ``/api/generate``, each question by itself.
        raw: do not template the prompt.
        until: when everybody leaves.
    """

    url: str
    model: str
    options: dict[str, Any]
    prompts: Callable[[int], str]
    chat: bool = False
    turns: int = 1
    raw: bool = False
    until: float = float("inf")

    def converse(self, client: int, number: int) -> Iterator[Answer]:
        """The answers of one conversation."""
        messages: list[dict[str, str]] = []
        for turn in range(self.turns):
            answer = Answer(client, turn, time.monotonic())
            prompt = self.prompts(number) if turn == 0 else "Go on."
            messages.append({"role": "user", "content": prompt})
            body = {"model": self.model, "options": {**self.options, "seed": number}}
            if self.chat:
                ask(self.url, "/api/chat", {**body, "messages": messages}, answer, self.until)
            else:
                ask(self.url, "/api/generate", {**body, "prompt": prompt, "raw": self.raw}, answer, self.until)
            messages.append({"role": "assistant", "content": answer.text})
            yield answer


def closed_loop(load: Load, n_clients: int, numbers: Iterator[int]) -> list[Answer]:
    """Each of *n_clients* asks again when it has its answer, until *numbers* run out or time is up."""
    answers: list[Answer] = []
    lock = threading.Lock()

    def run(client: int) -> None:
        while time.monotonic() < load.until:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            answers.extend(load.converse(client, number))

    _together([lambda client=client: run(client) for client in range(n_clients)], [0.0] * n_clients)
    return answers


def arrivals(load: Load, per_s: float, numbers: Sequence[int], seed: int = 0) -> list[Answer]:
    """A client of its own for each of *numbers*, the times between them exponential with *per_s* a second."""
    answers: list[Answer] = []
    draw = random.Random(seed)
    waits = [draw.expovariate(per_s) for _ in numbers]
    _together([lambda n=n: answers.extend(load.converse(n, n)) for n in numbers], waits)
    return answers


def _together(works: Sequence[Callable[[], None]], waits: Sequence[float]) -> None:
    """Run *works* in threads, each begun its wait after the one before, and return when all are done."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread, wait in zip(threads, waits, strict=True):
        time.sleep(wait)
        thread.start()
    for thread in threads:
        thread.join()

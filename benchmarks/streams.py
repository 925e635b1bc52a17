"""Requests that run at the same time, and how fast they are.

Tokens are counted by what a request says of itself when it has finished, because its pieces may hold text back: half a
character, or what could begin a stop string. A gap between two tokens is one between two pieces of which the later
has one token: nothing was held back there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count, pairwise

from common import Session, generate, random_prompt

from ollama_zmq.engine.requests import Finished, GenerationRequest, Output, TextChunk
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.formats.options import Options

_numbers = count()


def fresh_prompt(session: Session, n_tokens: int) -> list[int]:
    """*n_tokens* random token ids that nobody was asked before."""
    return random_prompt(n_tokens, session.model.network.vocab_size, next(_numbers))


class Streams:
    """Requests at the same time: when each got its pieces, and what it said of itself at its end."""

    def __init__(self, session: Session, prompts: Sequence[Sequence[int]], n_tokens: int) -> None:
        self.pieces: list[list[tuple[float, int]]] = [[] for _ in prompts]
        self._ends: list[Output] = []
        self._left = threading.Semaphore(0)
        options = Options(temperature=0.0, seed=0, num_predict=n_tokens)
        for i, prompt in enumerate(prompts):
            request = GenerationRequest(f"stream-{next(_numbers)}", tuple(prompt), options, truncate=False)
            session.broker.submit(session.model, request, self._taking(self.pieces[i]))

    def _taking(self, pieces: list[tuple[float, int]]) -> Callable[[Output], None]:
        def take(output: Output) -> None:
            if isinstance(output, TextChunk):
                pieces.append((time.monotonic(), len(output.token_ids)))
            else:
                self._ends.append(output)
                self._left.release()

        return take

    def finished(self) -> list[Finished]:
        """All of them, once all are done.

        Raises:
            OllamaZmqError: one broke, or ended before it had two tokens.
        """
        for _ in self.pieces:
            self._left.acquire()
        whole = [end for end in self._ends if isinstance(end, Finished) and end.output_tokens > 1]
        if len(whole) < len(self.pieces):
            raise OllamaZmqError(f"{len(self.pieces) - len(whole)} of {len(self.pieces)} streams ended too early")
        return whole

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Seconds between two tokens of a stream, of those that came in this time."""
        pairs = [pair for pieces in self.pieces for pair in pairwise(list(pieces))]
        return [b - a for (a, _), (b, n) in pairs if n == 1 and since <= a and b <= until]


def prefill_speed(session: Session, n_tokens: int) -> float:
    """Prompt tokens per second to the first token."""
    return n_tokens / generate(session, fresh_prompt(session, n_tokens), 1).prefill_s


def decode_speed(session: Session, n: int, n_tokens: int) -> float:
    """Tokens per second of *n* streams in sum."""
    done = Streams(session, [fresh_prompt(session, 1) for _ in range(n)], n_tokens).finished()
    return sum((end.output_tokens - 1) / end.decode_s for end in done)

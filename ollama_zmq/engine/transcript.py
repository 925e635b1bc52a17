"""The text of one sequence as a client gets it: whole characters, nothing of a stop string, each token with its text.

A token goes out with the first chunk that holds text of it. Text may be kept back, because a character is not whole
or because it might begin a stop string; then its tokens are kept back as well. Those of which a stop string has eaten
all the text never go out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ollama_zmq.engine.requests import TextChunk, TokenLogprob
from ollama_zmq.text.detokenizer import Detokenizer
from ollama_zmq.text.stops import StopStrings
from ollama_zmq.text.tokenizer import Tokenizer


class Transcript:
    """What has been said so far.

    Attributes:
        token_ids: those that went out in chunks.
    """

    def __init__(self, tokenizer: Tokenizer, request_id: str, stops: Iterable[str]) -> None:
        self._request_id = request_id
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        self._kept: list[tuple[int, int, TokenLogprob | None]] = []  # where its text begins, token, logprob
        self._decoded = 0  # characters that came out of the detokenizer
        self._shown = 0  # characters that went out
        self.token_ids: list[int] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._stops.matched is not None

    def push(self, token_id: int, logprob: TokenLogprob | None) -> list[TextChunk]:
        """Add a token and return what can be shown: one chunk or none."""
        self._kept.append((self._decoded, token_id, logprob))
        if self._tokenizer.is_control(token_id):
            return self._chunk(self._stops.push(self._tokenizer.token_text(token_id), hidden=True))
        text = self._detokenizer.push(token_id)
        self._decoded += len(text)
        return self._chunk(self._stops.push(text))

    def finish(self) -> list[TextChunk]:
        """What was kept back, now that no token follows: one chunk or none."""
        self._detokenizer.finish()
        text = self._stops.finish()
        return self._chunk(text, everything=not self.stopped)

    def _chunk(self, text: str, *, everything: bool = False) -> list[TextChunk]:
        self._shown += len(text)
        ready = [kept for kept in self._kept if everything or (text and kept[0] < self._shown)]
        if not ready and not text:
            return []
        self._kept = self._kept[len(ready) :]
        token_ids = tuple(token_id for _, token_id, _ in ready)
        self.token_ids.extend(token_ids)
        logprobs = tuple(logprob for _, _, logprob in ready if logprob is not None)
        return [TextChunk(self._request_id, text, token_ids, logprobs)]

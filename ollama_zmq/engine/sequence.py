"""One request while it is worked on: its tokens, its pages, and what comes of the logits.

Generation   wants the last row of its tokens, samples one more, and ends by the first of these:
             an end token                                  "stop"     the token is not shown
             a stop string                                 "stop"     nor is any of it, nor what was sampled behind it
             num_predict tokens                            "length"   less than 0: 10 * num_ctx; 0: one, as in Ollama
             the same token more than 30 times in a row    "length"   Ollama breaks the stream off there
             the context is full and must not be shifted   "length"
Scoring      wants every row, and ends when it has them

The next step needs the token only. Its text is made when that step has been sent, so a stop string is found one step
late; that step's token is never emitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ollama_zmq.engine.logprobs import token_logprob
from ollama_zmq.engine.pages import PageTable
from ollama_zmq.engine.prompt_lookup import PromptLookup
from ollama_zmq.engine.requests import Finished, GenerationRequest, Output, Scored, ScoreRequest, TokenLogprob
from ollama_zmq.engine.sampler import Sampler
from ollama_zmq.engine.transcript import Transcript
from ollama_zmq.engine.window import shifted
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.text.tokenizer import Tokenizer

Logits = npt.NDArray[np.float32]
MAX_REPEATS = 30
CONTEXTS_PER_REQUEST = 10  # what "no limit" means, in contexts


@dataclass(slots=True, eq=False)
class Sequence:
    """What the scheduler knows of a request.

    Attributes:
        tokens: those the model is to see, at positions 0, 1, ...
        table: its pages; ``table.cached`` of the tokens are in them.
        order: counts admissions; the lower one came first.
        last_scheduled: counts schedulings of all sequences; who has the lowest goes first.
        sent: tokens that are in the pages or on their way there.
        in_flight: microbatches on their way that it is in; more than one only while its prompt is prefilled.
        leader: a sequence whose prefill will bring the first ``shared`` tokens of this one, too.
        ended: nothing may come of it any more.
        unread: chunks of text that its reader has not taken; ``read_ahead``: how many may be, 0 for any number.
        pending_tokens: tokens that were sampled and whose text was not made yet.
        error: what it ended with instead of an answer.
    """

    request_id: str
    tokens: list[int]
    table: PageTable = field(default_factory=PageTable)
    order: int = 0
    last_scheduled: int = -1
    sent: int = 0
    in_flight: int = 0
    leader: Sequence | None = None
    shared: int = 0
    ended: bool = False
    unread: int = 0
    read_ahead: int = 0
    admitted_at: float | None = None
    pending_tokens: list[tuple[int, TokenLogprob | None]] = field(default_factory=list)
    error: OllamaZmqError | None = None

    @property
    def pending(self) -> int:
        """Tokens that have not been sent."""
        return len(self.tokens) - self.sent

    @property
    def decodes(self) -> bool:
        """Whether all tokens but its last are in the pages."""
        return len(self.tokens) - self.table.cached == 1

    @property
    def paused(self) -> bool:
        """Whether its reader has to catch up before it goes on."""
        return 0 < self.read_ahead <= self.unread + len(self.pending_tokens)

    @property
    def chunk(self) -> int:
        """The most tokens it may have in one microbatch."""
        return self.pending

    def rows(self, length: int) -> range:
        """Which of the next *length* tokens' logits are wanted."""
        raise NotImplementedError

    def receive(self, logits: Logits, now: float, draft: tuple[int, ...] = ()) -> None:
        """Take the rows that were wanted, float32 [R, V], as far as the next step needs it.

        Args:
            draft: what was guessed to follow the last token; the rows behind the first follow its tokens.

        Raises:
            OpError: nothing can be made of them.
        """
        raise NotImplementedError

    def drain_outputs(self, now: float) -> list[Output]:
        """Outputs since the last time; a stop string in them ends the sequence."""
        raise NotImplementedError


@dataclass(slots=True, eq=False, kw_only=True)
class Generation(Sequence):
    """A :class:`GenerationRequest` at work.

    Attributes:
        prompt_tokens: tokens of the prompt after cutting.
        history: that prompt and everything sampled, for the penalties; unlike ``tokens`` it is never shifted.
        keep: tokens at the head that a shift leaves alone.
        emitted: tokens sampled whose text was made, the end token among them.
        drafted, accepted: tokens that were guessed, and those of them that were right.
    """

    request: GenerationRequest
    tokenizer: Tokenizer
    sampler: Sampler
    num_ctx: int
    keep: int
    prompt_tokens: int = 0
    history: list[int] = field(default_factory=list)
    transcript: Transcript = field(init=False)
    emitted: int = 0
    reason: str = ""
    repeats: int = 0
    first_token_at: float = 0.0
    lookup: PromptLookup | None = None
    drafted: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        self.history = list(self.tokens)
        self.transcript = Transcript(self.tokenizer, self.request_id, self.request.options.stop)

    @property
    def output_tokens(self) -> int:
        """Tokens sampled, the end token among them."""
        return len(self.history) - self.prompt_tokens

    @property
    def overflows(self) -> bool:
        """Whether its last token has no slot left in the context."""
        return len(self.tokens) > self.num_ctx

    @property
    def room(self) -> int:
        """Tokens that may be guessed: there are slots for them, and one more is wanted after them."""
        return min(self.num_ctx - len(self.tokens), self._limit() - self.output_tokens - 1)

    def rows(self, length: int) -> range:
        return range(length - 1, length) if length == self.pending else range(0)

    def receive(self, logits: Logits, now: float, draft: tuple[int, ...] = ()) -> None:
        if not self.output_tokens:
            self.first_token_at = now
        self._sample(logits[0])
        self.drafted += len(draft)
        for guessed, row in zip(draft, logits[1:], strict=True):
            if self.ended or self.tokens[-1] != guessed:
                break
            self.accepted += 1
            self._sample(row)

    def _sample(self, logits: npt.NDArray[np.float32]) -> None:
        """Choose the next token from float32 [V]."""
        token_id = self.sampler.sample(logits, self.history)
        self.repeats = self.repeats + 1 if self.history[-1] == token_id else 1
        self.history.append(token_id)
        self.tokens.append(token_id)
        logprob = None
        if self.request.logprobs:
            logprob = token_logprob(self.tokenizer, logits, token_id, self.request.top_logprobs)
        self.pending_tokens.append((token_id, logprob))
        if token_id in self.tokenizer.end_ids:
            self._end("stop")
        elif self.output_tokens >= self._limit() or self.repeats > MAX_REPEATS or self._is_stuck():
            self._end("length")

    def drain_outputs(self, now: float) -> list[Output]:
        outputs: list[Output] = []
        for token_id, logprob in self.pending_tokens:
            self.emitted += 1
            if token_id not in self.tokenizer.end_ids:
                outputs += self.transcript.push(token_id, logprob)
            if self.transcript.stopped:
                self._end("stop")
                break
        self.pending_tokens.clear()
        return [*outputs, *self.transcript.finish(), self._finished(now)] if self.ended else outputs

    def _end(self, reason: str) -> None:
        self.ended, self.reason = True, reason

    def after_shift(self) -> list[int]:
        """Its tokens without those that a shift drops behind the head."""
        return shifted(self.tokens, self.keep, self.num_ctx)

    def _is_stuck(self) -> bool:
        return self.overflows and not self.request.shift

    def _limit(self) -> int:
        limit, num_predict = CONTEXTS_PER_REQUEST * self.num_ctx, self.request.options.num_predict
        return limit if num_predict < 0 else min(max(num_predict, 1), limit)

    def _finished(self, now: float) -> Finished:
        admitted_at = self.first_token_at if self.admitted_at is None else self.admitted_at
        return Finished(
            self.request_id,
            self.reason,
            context=(*self.request.token_ids, *self.transcript.token_ids),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.emitted,
            prefill_s=self.first_token_at - admitted_at,
            decode_s=now - self.first_token_at,
            drafted=self.drafted,
            accepted=self.accepted,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Scoring(Sequence):
    """A :class:`ScoreRequest` at work. ``logits`` [T, V] fills up row by row."""

    request: ScoreRequest
    logits: Logits
    received: int = 0

    @property
    def chunk(self) -> int:
        return min(self.request.chunk, self.pending)

    def rows(self, length: int) -> range:
        return range(min(max(self.received - self.sent, 0), length), length)

    def receive(self, logits: Logits, now: float, draft: tuple[int, ...] = ()) -> None:
        self.logits[self.received : self.received + len(logits)] = logits
        self.received += len(logits)
        self.ended = self.received == len(self.logits)

    def drain_outputs(self, now: float) -> list[Output]:
        return [Scored(self.request_id, self.logits)] if self.ended else []

"""The engine: requests in, microbatches out; logits in, text out. No sockets, no clock, no threads.

    submit, cancel, read      at any time; they answer what can be said at once
    next_microbatch           until it gives None; what it gives is sent through the stages
    complete                  for each microbatch, with the logits of the rows its step names
    drain_outputs             what has come of it, as text; the next step needs none of that, so it may be sent before
    fail                      the pages' contents are lost; what was in flight will not be completed

A request is answered with any number of ``TextChunk`` and then one ``Finished``, or one ``Scored``, or one
``RequestFailed``. What is generated depends on the request alone: not on what runs beside it, nor on chunks, sharing,
preemption or a pause.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ollama_zmq.engine.drafts import Drafter, PromptLookupDrafter
from ollama_zmq.engine.intake import open_generation, open_scoring
from ollama_zmq.engine.pacing import Pacing, StageCost
from ollama_zmq.engine.pages import PagePool, pages_for
from ollama_zmq.engine.requests import GenerationRequest, Microbatch, Output, Request, RequestFailed, TextChunk
from ollama_zmq.engine.scheduler import Scheduler
from ollama_zmq.engine.sequence import Generation, Sequence
from ollama_zmq.engine.slices import Slice, microbatch_of
from ollama_zmq.errors import ModelFileError, OllamaZmqError, OpError, RequestError, ShapeError
from ollama_zmq.text.tokenizer import Tokenizer

CANCELED = "request canceled"


class Engine:
    """Generates for one loaded model.

    Args:
        tokenizer: None for a file without a vocabulary, which can be scored but not read or written.
        vocab_size: V, columns of the logits; those beyond the tokenizer's own are never sampled.
        num_ctx: slots of one sequence.
        kv_pages: pages of every stage, at least one context's.
        max_tokens: T of the largest microbatch; max_rows: R of it, as many as tokens if None.
        max_sequences: how many may hold pages at once; the others wait.
        stages: what the stages are expected to cost; with none, one microbatch is in flight.
        max_in_flight: microbatches that may be on their way at once; 0 leaves it to the cost model.
        random_seed: draws the seed of a request that has none.
        speculate: decode speculatively where that pays; the text is the same. drafter: in place of prompt lookup.

    Raises:
        OpError: sizes with which nothing could run.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        num_ctx: int,
        kv_pages: int,
        max_tokens: int,
        max_rows: int | None = None,
        max_sequences: int = 1,
        stages: tuple[StageCost, ...] = (),
        max_in_flight: int = 0,
        random_seed: Callable[[], int] = lambda: secrets.randbits(63),
        speculate: bool = False,
        drafter: Drafter | None = None,
    ) -> None:
        if num_ctx < 2 or kv_pages < pages_for(num_ctx):
            raise OpError(
                f"kv_pages={kv_pages}: a context of {num_ctx} needs {pages_for(max(num_ctx, 2))}, at least 2 slots"
            )
        if min(vocab_size, max_tokens, max_sequences) < 1:
            raise OpError(f"{vocab_size=}, {max_tokens=}, {max_sequences=}: all start at 1")
        rows = max_tokens if max_rows is None else max_rows
        if rows < min(max_sequences, max_tokens):
            raise OpError(f"{max_rows=} is less than {max_sequences=}, which want a row each")
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.num_ctx = num_ctx
        self._random_seed = random_seed
        self._pool = PagePool(kv_pages)
        self.pacing = Pacing(stages, max_tokens=max_tokens, fixed=max_in_flight)
        self._scheduler = Scheduler(
            self._pool,
            self.pacing,
            max_tokens=max_tokens,
            max_rows=rows,
            max_sequences=max_sequences,
            drafter=drafter or (PromptLookupDrafter(self.pacing) if speculate else None),
        )
        self._sequences: dict[str, Sequence] = {}
        self._undrained: list[Sequence] = []
        self._microbatches = 0

    @property
    def waiting(self) -> int:
        """Requests that hold no pages yet."""
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Requests that hold pages and are not done."""
        return len(self._sequences) - self.waiting

    @property
    def in_flight(self) -> int:
        """Microbatches on their way."""
        return len(self._scheduler.in_flight)

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return self._pool.available

    def submit(self, request: Request) -> list[Output]:
        """Queue a request, or refuse it with ``RequestFailed``.

        Raises:
            OpError: its id belongs to a request that is not done.
        """
        if request.request_id in self._sequences:
            raise OpError(f"request_id={request.request_id!r} is in use", request_id=request.request_id)
        try:
            sequence = self._open(request)
        except OllamaZmqError as error:
            return [RequestFailed(request.request_id, error)]
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)
        return []

    def cancel(self, request_id: str) -> list[Output]:
        """End a request with ``RequestFailed``; nothing when it is not known. A microbatch it is in runs out first."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return []
        self._scheduler.remove(sequence)
        return [RequestFailed(request_id, RequestError(CANCELED))]

    def read(self, request_id: str, chunks: int) -> None:
        """Note that *chunks* more of a request have been read; it goes on if it was paused. Nothing if it is done."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            sequence.unread -= chunks

    def next_microbatch(self, now: float) -> Microbatch | None:
        """What to send next; None when nothing is to do, enough is in flight, or all that could run is."""
        slices = self._scheduler.plan(self._microbatches, now)
        if not slices:
            return None
        microbatch = microbatch_of(self._microbatches, slices)
        self._microbatches += 1
        return microbatch

    def complete(
        self,
        microbatch_id: int,
        logits: npt.NDArray[np.float32],
        now: float,
    ) -> None:
        """Take the logits, float32 [R, V], of a microbatch's rows. One that was forgotten is ignored.

        Raises:
            ShapeError: logits of another shape or dtype; the microbatch is still in flight then.
        """
        if microbatch_id not in self._scheduler.in_flight:
            return
        R = sum(len(slice_.rows) for slice_ in self._scheduler.in_flight[microbatch_id])
        if logits.shape != (R, self.vocab_size) or logits.dtype != np.float32:
            raise ShapeError(
                f"logits: {logits.dtype} {logits.shape}, expected float32 ({R}, {self.vocab_size})", arg="logits"
            )
        slices, row = self._scheduler.landed(microbatch_id), 0
        for slice_ in slices:
            wanted = logits[row : row + len(slice_.rows)]
            row += len(slice_.rows)
            if len(wanted) and not slice_.sequence.ended:
                self._receive(slice_, wanted, now)
        self._scheduler.settle(slice_.sequence for slice_ in slices)

    def drain_outputs(self, now: float) -> list[Output]:
        """What has come of the microbatches that are complete."""
        outputs: list[Output] = []
        for sequence in self._undrained:
            if self._sequences.get(sequence.request_id) is sequence:  # not canceled meanwhile
                outputs += self._drained(sequence, now)
        self._undrained.clear()
        return outputs

    def fail(self, error: OllamaZmqError) -> list[Output]:
        """End every request with ``RequestFailed(error)``."""
        self._scheduler.forget_pages()
        ended = list(self._scheduler.waiting)
        for sequence in ended:
            self._scheduler.remove(sequence)
            del self._sequences[sequence.request_id]
        return [RequestFailed(sequence.request_id, error) for sequence in ended]

    def check(self) -> None:
        """Assert what holds between any two calls: whoever is not done is known by its id, and the books are right."""
        self._scheduler.check()
        open_ids = [
            sequence.request_id
            for sequence in (*self._scheduler.running, *self._scheduler.waiting)
            if not sequence.ended
        ]
        undrained = [sequence.request_id for sequence in self._undrained]
        assert set(open_ids) <= self._sequences.keys() <= {*open_ids, *undrained}, "a request that nobody works on"

    def _open(self, request: Request) -> Sequence:
        if isinstance(request, GenerationRequest):
            if self.tokenizer is None:
                raise ModelFileError("the model file has no vocabulary, so it cannot read or write text")
            return open_generation(
                request,
                tokenizer=self.tokenizer,
                vocab_size=self.vocab_size,
                num_ctx=self.num_ctx,
                random_seed=self._random_seed,
            )
        return open_scoring(request, vocab_size=self.vocab_size, num_ctx=self.num_ctx)

    def _receive(self, slice_: Slice, logits: npt.NDArray[np.float32], now: float) -> None:
        sequence = slice_.sequence
        try:
            if isinstance(sequence, Generation):
                assert self.tokenizer is not None  # it was opened with one
                logits = logits[:, : self.tokenizer.vocab_size]
            sequence.receive(logits, now, slice_.draft)
        except OpError as error:
            position = sequence.table.cached - 1
            message = f"request {sequence.request_id!r}, position {position}: {error.message}"
            sequence.ended, sequence.error = True, OpError(message, **error.facts)
        self._undrained.append(sequence)
        if slice_.draft:
            self._scheduler.accept(sequence)
        if not sequence.ended and isinstance(sequence, Generation) and sequence.overflows:
            self._scheduler.refit(sequence, sequence.after_shift())

    def _drained(self, sequence: Sequence, now: float) -> list[Output]:
        was_over = sequence.ended
        outputs: list[Output] = (
            [RequestFailed(sequence.request_id, sequence.error)] if sequence.error else sequence.drain_outputs(now)
        )
        sequence.unread += sum(isinstance(output, TextChunk) for output in outputs)
        if sequence.ended:
            del self._sequences[sequence.request_id]
        if sequence.ended and not was_over:
            self._scheduler.remove(sequence)
        return outputs

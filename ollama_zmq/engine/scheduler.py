"""Which tokens go into the next microbatch. First come, first served; nobody starves.

    waiting --admit--> running --plan--> in flight --landed--> running
       ^                  |
       +----preempt-------+   its pages are needed by one that was admitted earlier

* A sequence is in at most one microbatch in flight, and takes ceil(running / max_in_flight) of the places in each, so
  that ``max_in_flight`` groups can follow each other through the stages. Those that waited longest go first.
* Sequences that decode take one token each; prefills share what is left of ``max_tokens``, at least one token.
* Pages are taken as tokens need them. When there are none, the youngest sequence that is not in flight goes back to
  wait at its old place; its tokens are prefilled again later, which changes nothing about the text. The oldest always
  gets its pages, because the pool holds at least one whole context.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from ollama_zmq.engine.pages import PagePool, pages_for
from ollama_zmq.engine.sequence import Scoring, Sequence


@dataclass(frozen=True, slots=True)
class Slice:
    """The next *length* tokens of a sequence, from position *start*. ``rows``: those whose logits are wanted."""

    sequence: Sequence
    start: int
    length: int
    rows: range


class Scheduler:
    """Holds the sequences that are not done.

    Attributes:
        waiting: in order of arrival.
        running: in order of arrival; these hold pages.
    """

    def __init__(
        self, pool: PagePool, *, max_tokens: int, max_rows: int, max_sequences: int, max_in_flight: int
    ) -> None:
        self.pool = pool
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.max_sequences = max_sequences
        self.max_in_flight = max_in_flight
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.in_flight: dict[int, list[Slice]] = {}
        self._arrivals = 0
        self._turns_given = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind all others."""
        sequence.order = self._arrivals
        self._arrivals += 1
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence. Its pages are free at once, or when the microbatch it is in has landed."""
        sequence.ended = True
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif not sequence.in_flight:
            self._retire(sequence)

    def plan(self, microbatch: int, now: float) -> list[Slice]:
        """The slices of the next microbatch, which is in flight from here on; none when nothing can be done."""
        if len(self.in_flight) >= self.max_in_flight:
            return []
        self._admit(now)
        turns = self._next_turns()
        places = -(-len(self.running) // self.max_in_flight)
        slices = self._fill(turns[:places]) or self._fill(turns[places:])  # the first may all lack pages
        for piece in slices:
            piece.sequence.in_flight, piece.sequence.turn = True, self._turns_given
            self._turns_given += 1
        if slices:
            self.in_flight[microbatch] = slices
        return slices

    def landed(self, microbatch: int) -> list[Slice]:
        """The slices of a microbatch that came back, now in the pages; none when it is not in flight."""
        slices = self.in_flight.pop(microbatch, [])
        for piece in slices:
            sequence = piece.sequence
            sequence.in_flight = False
            self.pool.written(sequence.table, sequence.tokens, piece.start + piece.length)
        return slices

    def settle(self, sequences: Iterable[Sequence]) -> None:
        """Free the pages of those that have ended."""
        for sequence in sequences:
            if sequence.ended and sequence in self.running:
                self._retire(sequence)

    def refit(self, sequence: Sequence, tokens: list[int]) -> None:
        """Give *sequence* other tokens, keeping the pages of the beginning they share with the ones it had."""
        self.pool.release(sequence.table, sequence.tokens)
        sequence.tokens = tokens
        sequence.table = self.pool.reuse(tokens)

    def forget_pages(self) -> None:
        """Nothing is in the pages any more and nothing in flight lands: all that runs waits to start again."""
        self.in_flight.clear()
        self.pool.forget()
        for sequence in self.running:
            sequence.table.pages, sequence.table.digests, sequence.table.cached = [], [], 0
            sequence.in_flight = False
        self.waiting = [sequence for sequence in (*self.running, *self.waiting) if not sequence.ended]
        self.running = []

    def _retire(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.table, sequence.tokens)

    def _admit(self, now: float) -> None:
        while self.waiting and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            promised = sum(pages_for(len(other.tokens)) - len(other.table.pages) for other in self.running)
            if self.running and self.pool.available - promised < pages_for(len(sequence.tokens) + 1):
                return
            del self.waiting[0]
            if not isinstance(sequence, Scoring):  # it needs the logits of every token, cached or not
                sequence.table = self.pool.reuse(sequence.tokens)
            if sequence.admitted_at is None:
                sequence.admitted_at = now
            insort(self.running, sequence, key=lambda other: other.order)

    def _next_turns(self) -> list[Sequence]:
        """Who may go now, those that waited longest first."""
        ready = [sequence for sequence in self.running if not sequence.in_flight and not sequence.ended]
        return sorted(ready, key=lambda sequence: sequence.turn)

    def _fill(self, turns: list[Sequence]) -> list[Slice]:
        budget, rows, slices = self.max_tokens, self.max_rows, list[Slice]()
        prefills = any(sequence.pending > 1 for sequence in turns)
        for sequence in sorted(turns, key=lambda sequence: sequence.pending > 1):
            left = budget - (1 if prefills and sequence.pending == 1 else 0)
            length = min(sequence.chunk, left)
            length -= max(0, len(sequence.rows(length)) - rows)
            if length > 0 and self._has_pages(sequence, length, slices):
                start = sequence.table.cached
                slices.append(Slice(sequence, start, length, sequence.rows(length)))
                budget -= length
                rows -= len(slices[-1].rows)
        return slices

    def _has_pages(self, sequence: Sequence, length: int, slices: list[Slice]) -> bool:
        """Take the pages for *length* more tokens, from younger sequences if need be."""
        if sequence not in self.running:  # preempted a moment ago
            return False
        planned = [piece.sequence for piece in slices]
        while not self.pool.grow(sequence.table, sequence.table.cached + length):
            younger = self.running[self.running.index(sequence) + 1 :]
            victims = [other for other in younger if not other.in_flight and other not in planned]
            if not victims:
                return False
            self._preempt(victims[-1])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.table, sequence.tokens)
        insort(self.waiting, sequence, key=lambda other: other.order)

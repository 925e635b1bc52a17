"""Continuous batching with chunked prefill: which tokens go into the next microbatch. First come, first admitted.

    waiting --admit--> running --plan--> in flight --landed--> running
       ^                  |
       +----preempt-------+   preemption by recompute: its pages are needed by one that was admitted earlier
       +----pause---------+   backpressure: its reader is too far behind; it is not admitted before that has caught up

* How many microbatches follow each other through the stages, and the token budget of one (how much of a prompt goes
  into it), is decided by :class:`~ollama_zmq.engine.pacing.Pacing`.
* Sequences that decode take one token each, and a group of them travels together: their number over the number of
  groups, those that waited longest first. What they leave of the chunk goes to prompts, at least one token.
* Prompts get a quantum of ``QUANTUM`` tokens each, round robin in order of arrival: many short ones that came together
  end one after another instead of all at the end, and none waits for the whole of a long one. Chunks of one prompt may
  follow each other through the stages, because every stage takes microbatches in the order in which they were sent. A
  prompt that begins like an older one that is being prefilled waits for it and shares its pages (in-flight prefix
  sharing).
* Pages are taken as tokens need them. When there are none, the youngest sequence that is not in flight goes back to
  wait at its old place; its tokens are prefilled again later, which changes nothing about the text. The oldest always
  gets its pages, because the pool holds at least one whole context.
* One that is paused holds neither a place nor a page, so a client that does not read costs the others nothing. What was
  in its pages stays known, and is not computed again unless somebody else needed them meanwhile.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable

from ollama_zmq.engine.drafts import Drafter
from ollama_zmq.engine.pacing import Pace, Pacing
from ollama_zmq.engine.pages import PagePool, common_prefix, pages_for
from ollama_zmq.engine.sequence import Generation, Scoring, Sequence
from ollama_zmq.engine.slices import Slice
from ollama_zmq.ops.state import PAGE_SLOTS


class Scheduler:
    """Holds the sequences that are not done.

    Attributes:
        waiting: in order of arrival, those that are paused among them.
        running: in order of arrival; these hold pages.
        drafter: drafts what sequences that decode will say, or None.
    """

    def __init__(
        self,
        pool: PagePool,
        pacing: Pacing,
        *,
        max_tokens: int,
        max_rows: int,
        max_sequences: int,
        drafter: Drafter | None = None,
    ) -> None:
        self.drafter = drafter
        self.pool = pool
        self.pacing = pacing
        self.max_tokens = max_tokens
        self.max_rows = max_rows
        self.max_sequences = max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.in_flight: dict[int, list[Slice]] = {}
        self._arrivals = 0
        self._schedulings = 0
        self._opened = 0  # microbatches in flight that landings since the last prompt came have made room for

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
        elif not sequence.in_flight and sequence in self.running:  # else it is done, and that was not drained yet
            self._retire(sequence)

    def plan(self, microbatch: int, now: float) -> list[Slice]:
        """The slices of the next microbatch, which is in flight from here on; none when nothing can be done."""
        self._admit(now)
        ready = self._in_order()
        decodes = [sequence for sequence in ready if sequence.decodes]
        prompts = [sequence for sequence in ready if not sequence.decodes and not self._waits_for_leader(sequence)]
        decoding = sum(sequence.decodes for sequence in self.running)
        pace = self.pacing.plan(decoding, sum(sequence.pending for sequence in prompts), len(prompts))
        if len(self.in_flight) >= self._limit(pace, prompts=bool(prompts), decoding=bool(decoding)):
            return []
        places = -(-decoding // pace.groups)
        # those may all lack pages
        slices = self._fill(decodes[:places], prompts, pace.chunk) or self._fill(decodes, [], 0)
        if self.drafter is not None and slices and not prompts:
            slices = self._with_drafts(slices, self.drafter, decoding)
        for slice_ in slices:
            slice_.sequence.sent = slice_.stop
            slice_.sequence.in_flight += 1
            if not slice_.is_within_quantum:
                self._queue_up(slice_.sequence)
        if slices:
            self.in_flight[microbatch] = slices
        return slices

    def _limit(self, pace: Pace, *, prompts: bool, decoding: bool) -> int:
        """Microbatches in flight at most. While sequences decode, a prompt's go out one by one as others land.

        All at once, they would stand before the first stage, and every running sequence behind them.
        """
        if not prompts:
            self._opened = pace.groups
            return pace.groups
        return min(pace.depth, max(self._opened, pace.groups) + 1) if decoding else pace.depth

    def landed(self, microbatch: int) -> list[Slice]:
        """The slices of a microbatch that came back, now in the pages; none when it is not in flight."""
        slices = self.in_flight.pop(microbatch, [])
        self._opened += 1
        for slice_ in slices:
            sequence = slice_.sequence
            sequence.in_flight -= 1
            if slice_.stop > sequence.table.cached:  # else a later chunk came first: it had no rows for the head to do
                self.pool.written(sequence.table, sequence.tokens, slice_.stop)
        return slices

    def accept(self, sequence: Sequence) -> None:
        """Note that all tokens but the last are in the pages: those of a draft that turned out right are."""
        sequence.sent = len(sequence.tokens) - 1
        self.pool.written(sequence.table, sequence.tokens, sequence.sent)

    def settle(self, sequences: Iterable[Sequence]) -> None:
        """Free the pages of those that have ended or pause."""
        for sequence in sequences:
            if sequence.in_flight or sequence not in self.running:
                continue
            if sequence.ended:
                self._retire(sequence)
            elif sequence.paused:
                self._send_back(sequence)

    def refit(self, sequence: Sequence, tokens: list[int]) -> None:
        """Give *sequence* other tokens, keeping the pages of the beginning they share with the ones it had."""
        self.pool.release(sequence.table, sequence.tokens)
        sequence.tokens = tokens
        self._reuse(sequence)

    def forget_pages(self) -> None:
        """Nothing is in the pages any more and nothing in flight lands: all that runs waits to start again."""
        self.in_flight.clear()
        self.pool.forget()
        for sequence in self.running:
            sequence.table.pages, sequence.table.digests, sequence.table.cached = [], [], 0
            sequence.in_flight = 0
        self.waiting = [sequence for sequence in (*self.running, *self.waiting) if not sequence.ended]
        self.waiting.sort(key=lambda sequence: sequence.order)
        self.running = []

    def check(self) -> None:
        """Assert what holds between any two calls: who waits holds nothing, who runs holds what the pool says."""
        self.pool.check()
        assert not {id(one) for one in self.waiting} & {id(one) for one in self.running}
        assert len(self.running) <= self.max_sequences
        for queued in (self.waiting, self.running):
            orders = [sequence.order for sequence in queued]
            assert orders == sorted(set(orders)), f"not in order of arrival: {orders}"
        for sequence in self.waiting:
            holds = sequence.table.pages, sequence.in_flight, sequence.ended
            assert holds == ([], 0, False), f"{sequence.request_id} waits and holds {holds}"
        sent = Counter(id(slice_.sequence) for slices in self.in_flight.values() for slice_ in slices)
        assert sent.keys() <= {id(sequence) for sequence in self.running}
        for sequence in self.running:
            table = sequence.table
            assert sequence.in_flight == sent[id(sequence)], f"{sequence.request_id}: in flight"
            assert table.cached <= sequence.sent <= len(sequence.tokens), f"{sequence.request_id}: sent"
            assert sequence.sent <= len(table.pages) * PAGE_SLOTS, f"{sequence.request_id}: sent without a page"
            assert len(table.digests) <= len(table.pages)
        held = Counter(page for sequence in self.running for page in sequence.table.pages)
        assert held == Counter({page: n for page, n in enumerate(self.pool.holders) if n}), "pages held by nobody"

    def _retire(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence.table, sequence.tokens)

    def _admit(self, now: float) -> None:
        while len(self.running) < self.max_sequences:
            sequence = next((sequence for sequence in self.waiting if not sequence.paused), None)
            if sequence is None:
                return
            promised = sum(_missing_pages(other) for other in self.running)
            need = pages_for(len(sequence.tokens) + 1) - self.pool.held(sequence.tokens)
            if self.running and self.pool.available - promised < need:
                return
            self.waiting.remove(sequence)
            sequence.sent = 0
            if not isinstance(sequence, Scoring):  # it needs the logits of every token, cached or not
                self._reuse(sequence)
                sequence.leader, sequence.shared = self._prefix_leader(sequence)
            if sequence.admitted_at is None:
                sequence.admitted_at = now
            insort(self.running, sequence, key=lambda other: other.order)
            self._queue_up(sequence)

    def _reuse(self, sequence: Sequence) -> None:
        """Give *sequence*, which holds no pages, those that already have the beginning of its tokens."""
        sequence.table = self.pool.reuse(sequence.tokens)
        sequence.sent = sequence.table.cached

    def _prefix_leader(self, sequence: Sequence) -> tuple[Sequence | None, int]:
        """The older prompt that will bring most of the beginning of *sequence*, and how many tokens, by whole pages."""
        leader, shared = None, sequence.table.cached
        for other in self.running:
            if other.order < sequence.order and not other.decodes and not other.ended:
                common = min(common_prefix(other.tokens, sequence.tokens), len(sequence.tokens) - 1)
                whole = common // PAGE_SLOTS * PAGE_SLOTS
                if whole > shared:
                    leader, shared = other, whole
        return leader, shared

    def _waits_for_leader(self, sequence: Sequence) -> bool:
        """Whether *sequence* still waits for its leader; when it does not, it takes what pages there are."""
        leader = sequence.leader
        if leader is None:
            return False
        if leader.table.cached < sequence.shared and not leader.ended and leader in self.running:
            return True
        sequence.leader = None
        self.pool.release(sequence.table, sequence.tokens)
        self._reuse(sequence)
        return False

    def _queue_up(self, sequence: Sequence) -> None:
        """Schedule *sequence* after all others that run."""
        sequence.last_scheduled = self._schedulings
        self._schedulings += 1

    def _in_order(self) -> list[Sequence]:
        """Those that may be scheduled now, the least recently scheduled first."""
        ready = [sequence for sequence in self.running if sequence.pending and not sequence.ended]
        return sorted(ready, key=lambda sequence: sequence.last_scheduled)

    def _fill(self, decodes: list[Sequence], prompts: list[Sequence], chunk: int) -> list[Slice]:
        room, rows, slices = self.max_tokens, self.max_rows, list[Slice]()
        for sequence in decodes:
            if len(slices) < room - bool(prompts) and self._has_pages(sequence, 1, slices):
                slices.append(Slice(sequence, sequence.sent, 1, sequence.rows(1)))
        room, rows = min(room - len(slices), chunk), rows - len(slices)
        for sequence in prompts:
            length = min(sequence.chunk, room)
            length -= max(0, len(sequence.rows(length)) - rows)
            if length > 0 and self._has_pages(sequence, length, slices):
                slices.append(Slice(sequence, sequence.sent, length, sequence.rows(length)))
                room -= length
                rows -= len(slices[-1].rows)
        return slices

    def _with_drafts(self, slices: list[Slice], drafter: Drafter, decoding: int) -> list[Slice]:
        """*slices* of sequences that decode, with guesses behind their tokens; they take no page from anybody."""
        share = min(self.max_tokens, self.max_rows) // len(slices) - 1
        drafted = []
        for slice_ in slices:
            sequence = slice_.sequence
            if isinstance(sequence, Generation):
                draft = drafter.draft(sequence, min(share, sequence.room), decoding)
                length = 1 + len(draft)
                if draft and self.pool.grow(sequence.table, slice_.start + length):
                    slice_ = Slice(sequence, slice_.start, length, range(length), draft)
            drafted.append(slice_)
        return drafted

    def _has_pages(self, sequence: Sequence, length: int, slices: list[Slice]) -> bool:
        """Take the pages for *length* more tokens, from younger sequences if need be."""
        if sequence not in self.running:  # preempted a moment ago
            return False
        planned = [slice_.sequence for slice_ in slices]
        while not self.pool.grow(sequence.table, sequence.sent + length):
            younger = self.running[self.running.index(sequence) + 1 :]
            victims = [other for other in younger if not other.in_flight and other not in planned]
            if not victims:
                return False
            self._send_back(victims[-1])
        return True

    def _send_back(self, sequence: Sequence) -> None:
        """Let a sequence that runs, and is not in flight, wait at its old place; its pages are free."""
        self.running.remove(sequence)
        self.pool.release(sequence.table, sequence.tokens)
        insort(self.waiting, sequence, key=lambda other: other.order)


def _missing_pages(sequence: Sequence) -> int:
    """Pages that its tokens will need besides those it holds or will share."""
    coming = sequence.shared // PAGE_SLOTS if sequence.leader else 0
    return max(pages_for(len(sequence.tokens)) - max(len(sequence.table.pages), coming), 0)

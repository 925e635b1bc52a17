"""Stages in virtual time: an engine's microbatches pass workers that take s(rows) = f + k * rows and a way to them.

Each stage takes microbatches in order, one at a time, as a worker does; nobody sleeps and no clock is read.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pacing import StageCost, StageTime
from ollama_zmq.engine.requests import Finished, Piece
from tests.engine.fakes import FakeTokenizer, V, generation


class Talker:
    """A model that never ends nor repeats itself, whatever it is asked; its memory is not looked at."""

    def run(self, microbatch):
        logits = np.zeros((len(microbatch.rows), V), np.float32)
        ends = np.cumsum(microbatch.lengths) - 1
        for row, wanted in enumerate(microbatch.rows):
            sequence = int(np.searchsorted(ends, wanted))
            logits[row, 97 + (microbatch.positions[sequence] + microbatch.lengths[sequence]) % 2] = 20
        return logits


def stage(place, f_ms, k_ms, rtt_ms=0.0, *, head=False, believed=1.0):
    """A stage's cost; *believed* is how far from it the engine's expectation is."""
    return StageCost(place, Line(f_ms / 1e3 * believed, k_ms / 1e3 * believed), Line(rtt_ms / 1e3, 0.0), head)


@dataclass
class Flight:
    microbatch: object
    logits: object
    stage: int = 0
    times: list = field(default_factory=list)


class Simulation:
    """An engine over stages. ``said``: request id -> when its tokens came; ``done``: those that are finished.

    ``slowness`` of a stage may change while it runs.
    """

    def __init__(self, stages, *, model=None, believed=1.0, max_in_flight=0, **sizes):
        self.stages, self.slowness, self.model = stages, [1.0] * len(stages), model or Talker()
        expected = [
            StageCost(s.place, Line(s.work.fixed_s * believed, s.work.row_s * believed), s.way, s.wanted_only)
            for s in stages
        ]
        self.engine = Engine(
            tokenizer=FakeTokenizer(),
            vocab_size=V,
            **{"num_ctx": 8192, "kv_pages": 1024, "max_tokens": 512, "max_sequences": 64} | sizes,
            stages=tuple(expected),
            max_in_flight=max_in_flight,
        )
        self.now, self.said, self.done, self.outputs = 0.0, {}, [], []
        self._free = {s.place: 0.0 for s in stages}
        self._at = {s.place: 0 for s in stages}
        self._events, self._count = [], 0

    def submit(self, *requests):
        for request in requests:
            self.said[request.request_id] = []
            self.outputs += self.engine.submit(request, self.now)
        self._pump()

    def run(self, until=float("inf")):
        """Go on until then, or until nothing is left to do; return the tokens per second of this time."""
        started, before = self.now, sum(map(len, self.said.values()))
        while self._events and self._events[0][0] <= until:
            self.now, _, flight = heapq.heappop(self._events)
            self._came_back(flight)
        if until != float("inf"):
            self.now = until
        return (sum(map(len, self.said.values())) - before) / max(self.now - started, 1e-9)

    def _pump(self):
        while (microbatch := self.engine.next_microbatch(self.now)) is not None:
            self._send(Flight(microbatch, self.model.run(microbatch)))

    def _send(self, flight):
        cost, i = self.stages[flight.stage], flight.stage
        rows = len(flight.microbatch.rows) if cost.wanted_only else len(flight.microbatch.token_ids)
        work_s, way_s = cost.work.seconds(rows) * self.slowness[i], cost.way.seconds(rows)
        starts = max(self.now + way_s / 2, self._free[cost.place])
        self._free[cost.place] = starts + work_s
        flight.times.append(StageTime(rows, work_s, None if self._at[cost.place] else way_s))
        self._at[cost.place] += 1
        self._count += 1
        heapq.heappush(self._events, (starts + work_s + way_s / 2, self._count, flight))

    def _came_back(self, flight):
        self._at[self.stages[flight.stage].place] -= 1
        flight.stage += 1
        left = self.stages[flight.stage :]
        if left and left[0].wanted_only and not flight.microbatch.rows:
            flight.times.append(StageTime(0, 0.0, None))
            left = []
        if left:
            self._send(flight)
            return
        outputs = self.engine.complete(flight.microbatch.id, flight.logits, self.now, tuple(flight.times))
        self.outputs += outputs
        for output in outputs:
            if isinstance(output, Piece):
                self.said[output.request_id] += [self.now] * len(output.token_ids)
            elif isinstance(output, Finished):
                self.done.append(output.request_id)
        self._pump()


def streams(n, num_predict=100_000, prompt=2):
    """Requests that talk for long, with prompts of nothing in common."""
    return [
        generation(f"s{i}", prompt=[i] * prompt, num_predict=num_predict, temperature=0.0, repeat_penalty=1.0)
        for i in range(n)
    ]


def gaps(times, since=0.0, until=float("inf")):
    """Seconds between tokens."""
    return [b - a for a, b in pairwise(times) if a >= since and b <= until]

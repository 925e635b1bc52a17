"""Stages in virtual time: an engine's microbatches pass workers that take s(rows) = f + k * rows, and a transfer.

Each stage takes microbatches in order, one at a time, as a worker does, and has its overhead around each of them. So
does the broker: f for all that it sends and receives for a microbatch, in equal parts, and k for each row that it
samples. Nobody sleeps and no clock is read.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pacing import ZERO_COST, BrokerTime, StageCost, StageTime
from ollama_zmq.engine.requests import Finished, TextChunk
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


def stage(worker, f_ms, k_ms, rtt_ms=0.0, *, head=False, overhead_ms=0.0):
    """A stage's cost; the transfer is the round trip and the worker's overhead."""
    transfer, overhead = Line((rtt_ms + overhead_ms) / 1e3, 0.0), Line(overhead_ms / 1e3, 0.0)
    return StageCost(worker, Line(f_ms / 1e3, k_ms / 1e3), transfer, head, overhead=overhead)


@dataclass
class Flight:
    microbatch: object
    logits: object
    stage: int = 0
    sent_at: float = 0.0
    alone: bool = True
    times: list = field(default_factory=list)


class Simulation:
    """An engine over stages. ``said``: request id -> when its tokens came; ``done``: those that are finished.

    ``slowness`` of a stage may change while it runs. ``broker`` is what the broker does for a microbatch in all.
    """

    def __init__(self, stages, *, model=None, believed=1.0, max_in_flight=0, broker=ZERO_COST, **sizes):
        self.broker = broker
        self.stages, self.slowness, self.model = stages, [1.0] * len(stages), model or Talker()
        expected = [
            StageCost(s.worker, Line(s.work.fixed_s * believed, s.work.row_s * believed), s.transfer, s.wanted_only)
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
        self._free = {"broker": 0.0} | {s.worker: 0.0 for s in stages}
        self._answered_at = {s.worker: 0.0 for s in stages}
        self._at = {s.worker: 0 for s in stages}
        self._events, self._count = [], 0

    def submit(self, *requests):
        for request in requests:
            self.said[request.request_id] = []
            self.outputs += self.engine.submit(request)
        self._pump()

    def run(self, until=float("inf")):
        """Go on until then, or until nothing is left to do; return the tokens per second of this time."""
        started, before = self.now, sum(map(len, self.said.values()))
        while self._events and self._events[0][0] <= until:
            self.now, _, happens, flight = heapq.heappop(self._events)
            happens(flight)
        if until != float("inf"):
            self.now = until
        return (sum(map(len, self.said.values())) - before) / max(self.now - started, 1e-9)

    def _later(self, when, happens, flight):
        self._count += 1
        heapq.heappush(self._events, (when, self._count, happens, flight))

    def _handle(self, flight, happens, rows=0):
        """Let the broker do something for *flight* when it has done what came before."""
        takes_s = self.broker.fixed_s / (len(self.stages) + 1) + self.broker.row_s * rows
        self._free["broker"] = max(self.now, self._free["broker"]) + takes_s
        self._later(self._free["broker"], happens, flight)

    def _pump(self):
        while (microbatch := self.engine.next_microbatch(self.now)) is not None:
            self._leave(Flight(microbatch, self.model.run(microbatch)))

    def _leave(self, flight):
        """Let the broker send *flight* to its stage; the transfer there begins when it begins with that."""
        worker = self.stages[flight.stage].worker
        flight.sent_at, flight.alone = max(self.now, self._free["broker"]), not self._at[worker]
        self._at[worker] += 1
        self._handle(flight, self._send)

    def _send(self, flight):
        cost, i = self.stages[flight.stage], flight.stage
        rows = len(flight.microbatch.rows) if cost.wanted_only else len(flight.microbatch.token_ids)
        work_s, overhead_s = cost.work.seconds(rows) * self.slowness[i], cost.overhead.fixed_s
        transfer_s = cost.transfer.seconds(rows) - overhead_s
        self._free[cost.worker] = max(self.now + transfer_s / 2, self._free[cost.worker]) + overhead_s + work_s
        flight.times.append(StageTime(rows, work_s, None))
        self._later(self._free[cost.worker] + transfer_s / 2, self._came_back, flight)

    def _came_back(self, flight):
        cost, time = self.stages[flight.stage], flight.times[-1]
        before, self._answered_at[cost.worker] = self._answered_at[cost.worker], self.now
        flight.times[-1] = StageTime(
            time.rows,
            time.work_s,
            self.now - flight.sent_at - time.work_s if flight.alone else None,
            self.now - before - time.work_s if flight.sent_at + cost.transfer.seconds(time.rows) < before else None,
        )
        self._at[cost.worker] -= 1
        flight.stage += 1
        left = self.stages[flight.stage :]
        if left and left[0].wanted_only and not flight.microbatch.rows:
            flight.times.append(StageTime(0, 0.0, None))
            left = []
        if left:
            self._leave(flight)
        else:
            self._handle(flight, self._complete, len(flight.microbatch.rows))

    def _complete(self, flight):
        self.engine.complete(flight.microbatch.id, flight.logits, self.now)
        self.engine.pacing.observe(tuple(flight.times))
        outputs = self.engine.drain_outputs(self.now)
        tokens, wanted = len(flight.microbatch.token_ids), len(flight.microbatch.rows)
        sampling_s = self.broker.row_s * wanted
        after_s = self.broker.fixed_s / (len(self.stages) + 1) + sampling_s
        self.engine.pacing.observe_broker(BrokerTime(tokens, wanted, self.broker.fixed_s + sampling_s, after_s))
        self.outputs += outputs
        for output in outputs:
            if isinstance(output, TextChunk):
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

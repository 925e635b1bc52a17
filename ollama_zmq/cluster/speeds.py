"""How fast a model is over its stages: predicted by the cost model, and measured while it runs.

**Predicted** from what workers and links were measured at when they joined. A stage costs what the engine's cost model
(:mod:`ollama_zmq.engine.pacing`) expects before it has measured it: computing and transfer
(:mod:`ollama_zmq.cluster.cost_model`). Decoding is one sequence, one token at a time, in half of the context that was
asked for. Prefill is a prompt of 512 tokens, in the chunks that the engine would choose, following each other through
the stages.

**Measured** in tokens per second of prompts, and of a stream that runs alone: one over the median time of microbatches
of one token that nothing else of the model was in flight beside, from the first stage to the last. A burst of prefill
lasts from the first microbatch with a prompt to the moment when none is in flight, and only tokens of prompts count;
one of fewer than 256 does not, because it mostly waits for stages to fill. Per stage, the latency of decode steps is
cut into kernels, wire and waiting in the worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import median

from ollama_zmq.cluster.cost_model import PROMPT_TOKENS, WorkerProfile
from ollama_zmq.cluster.stages import Stage
from ollama_zmq.cluster.state import Percentiles, StageLatency, TokenSpeeds
from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import ZERO_COST, Pacing, StageCost
from ollama_zmq.engine.requests import Microbatch

STEPS = 512
STREAM_STEPS = 128
BURSTS = 16
LEAST_BURST = 256
OVERHEAD = Line(2e-4, 0.0)  # of a worker around the kernels, read from answers that follow each other


def stage_cost(stage: Stage, profile: WorkerProfile, hidden_size: int) -> StageCost:
    """Return what *stage* is expected to cost on the worker of *profile*."""
    compute, transfer = profile.compute(stage.cost), profile.transfer(hidden_size)
    overhead = OVERHEAD if profile.is_remote else ZERO_COST
    return StageCost(stage.address, compute, transfer, stage.takes_wanted, profile.share, overhead)


def forecast(costs: Sequence[StageCost], max_tokens: int) -> TokenSpeeds:
    """Return tokens per second of one stream through stages of *costs*."""
    pacing = Pacing(costs, max_tokens=max_tokens)
    chunk = pacing.plan(0, PROMPT_TOKENS).chunk
    return TokenSpeeds(1 / pacing.loop_s(1, 1), max(PROMPT_TOKENS, chunk) / pacing.prefill_s(PROMPT_TOKENS, chunk))


def token_us(cost: StageCost) -> float:
    """Return microseconds of one decoded token on a stage, with the transfer."""
    return (cost.work.seconds(1) + cost.transfer.seconds(1)) * 1e6


@dataclass(slots=True)
class LatencyWindow:
    """The last decode steps of one stage, in microseconds."""

    compute_us: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    wire_us: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    queue_us: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))

    def add(self, round_trip_us: float, compute_us: float, queue_us: float) -> None:
        """Take one step; what is neither computing nor waiting is the wire."""
        self.compute_us.append(compute_us)
        self.queue_us.append(queue_us)
        self.wire_us.append(max(round_trip_us - compute_us - queue_us, 0.0))

    def summary(self) -> StageLatency | None:
        """Return the percentiles, or None before the first step."""
        if not self.compute_us:
            return None
        return StageLatency(
            percentiles(self.compute_us), percentiles(self.wire_us), percentiles(self.queue_us), len(self.compute_us)
        )


def percentiles(values: Collection[float]) -> Percentiles:
    """Return p50 and p95 of *values* by nearest rank: the least value that so many percent do not exceed."""
    ordered = sorted(values)
    p50, p95 = (ordered[-(-percent * len(ordered) // 100) - 1] for percent in (50, 95))
    return Percentiles(p50, p95)


@dataclass(slots=True)
class SpeedMeter:
    """Measures one model while it runs.

    Attributes:
        in_flight: ids of the microbatches that have entered and not left.
        lone: the one that decodes one token, with nothing beside it since it entered, and when that was.
        prompts: microbatches in flight that carry a prompt.
    """

    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=STREAM_STEPS))
    bursts: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=BURSTS))
    in_flight: set[int] = field(default_factory=set)
    lone: tuple[int, float] | None = None
    prompts: int = 0
    burst_at: float = 0.0
    burst_tokens: int = 0

    def begin(self, microbatch: Microbatch, now: float) -> None:
        """A microbatch enters the first stage."""
        alone = not self.in_flight and microbatch.is_decode and len(microbatch.lengths) == 1
        self.lone = (microbatch.id, now) if alone else None
        self.in_flight.add(microbatch.id)
        if microbatch.prompt_tokens:
            if not self.prompts:
                self.burst_at, self.burst_tokens = now, 0
            self.prompts += 1

    def end(self, microbatch: Microbatch, now: float) -> None:
        """A microbatch has left the last stage."""
        self.in_flight.discard(microbatch.id)
        if self.lone is not None and self.lone[0] == microbatch.id:
            self.steps_s.append(now - self.lone[1])
        if microbatch.prompt_tokens:
            self.prompts -= 1
            self.burst_tokens += microbatch.prompt_tokens
            if not self.prompts and self.burst_tokens >= LEAST_BURST:
                self.bursts.append((self.burst_tokens, now - self.burst_at))

    def drop(self, microbatch: Microbatch) -> None:
        """A microbatch has failed on its way."""
        self.in_flight.discard(microbatch.id)
        self.lone = None
        self.prompts -= microbatch.prompt_tokens > 0

    def speeds(self) -> TokenSpeeds:
        """What was measured lately."""
        step_s = median(self.steps_s) if self.steps_s else 0.0
        tokens, seconds = sum(tokens for tokens, _ in self.bursts), sum(seconds for _, seconds in self.bursts)
        return TokenSpeeds(1 / step_s if step_s else 0.0, tokens / seconds if seconds else 0.0)

"""How fast a model is: tokens per second of prompts, and of a stream that runs alone.

A stream's speed is one over the median time of microbatches of one token that nothing else was in flight beside, from
the first stage to the last. A burst of
prefill lasts from the first microbatch with a prompt to the moment when none is in flight; those of fewer than 256
tokens do not count, because they are mostly waiting for stages to fill.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from ollama_zmq.cluster.state import TokenSpeeds
from ollama_zmq.engine.requests import Microbatch

WINDOW = 128
BURSTS = 16
LEAST_BURST = 256


@dataclass(slots=True)
class SpeedMeter:
    """Measures one model while it runs."""

    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    bursts: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=BURSTS))
    sent_at: dict[int, float] = field(default_factory=dict)
    prompts: int = 0
    burst_at: float = 0.0
    burst_tokens: int = 0

    def begin(self, microbatch: Microbatch, now: float) -> None:
        """A microbatch enters the first stage."""
        tokens, n_sequences = len(microbatch.token_ids), len(microbatch.lengths)
        if tokens == 1:
            if not self.sent_at and not self.prompts:
                self.sent_at[microbatch.id] = now
        elif tokens > n_sequences:
            if not self.prompts:
                self.burst_at, self.burst_tokens = now, 0
            self.prompts += 1

    def end(self, microbatch: Microbatch, now: float) -> None:
        """A microbatch has left the last stage."""
        tokens, n_sequences = len(microbatch.token_ids), len(microbatch.lengths)
        if microbatch.id in self.sent_at:
            self.steps_s.append(now - self.sent_at.pop(microbatch.id))
        elif tokens > n_sequences:
            self.prompts -= 1
            self.burst_tokens += tokens
            if not self.prompts and self.burst_tokens >= LEAST_BURST:
                self.bursts.append((self.burst_tokens, now - self.burst_at))

    def drop(self, microbatch: Microbatch) -> None:
        """A microbatch has failed on its way."""
        self.sent_at.pop(microbatch.id, None)
        self.prompts -= len(microbatch.token_ids) > len(microbatch.lengths)

    def speeds(self) -> TokenSpeeds:
        """What was measured lately."""
        step_s = median(self.steps_s) if self.steps_s else 0.0
        tokens, seconds = sum(tokens for tokens, _ in self.bursts), sum(seconds for _, seconds in self.bursts)
        return TokenSpeeds(1 / step_s if step_s else 0.0, tokens / seconds if seconds else 0.0)

"""Where the time of a step goes on one stage: in kernels, on the wire, waiting in the worker."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ollama_zmq.cluster.state import Percentiles, StageLatency

WINDOW = 512


@dataclass(slots=True)
class LatencyWindow:
    """The last decode steps of one stage, in microseconds."""

    compute_us: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    wire_us: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    queue_us: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

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


def percentiles(values: deque[float]) -> Percentiles:
    """Return p50 and p95 of *values* by nearest rank."""
    ordered = sorted(values)
    return Percentiles(ordered[len(ordered) // 2], ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)])

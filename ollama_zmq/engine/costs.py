"""What a stage's work takes for so many rows, measured while it runs.

    s(rows) = (f + k * rows) * r(rows)

f and k, never negative, are the least squares line through what was measured lately: for each number of rows the
median of its last samples, weighted by 1/s, so that a line does not give up 1 row for the sake of 512. Until sizes are
known of which one is ``SPAN`` times another, it is the expected line, scaled by the median of measured over expected:
from 1 and 2 rows, each off by a tenth, nothing can be told of 9. A median does not see an outlier, and a size that has
not been met for ``FORGET_AFTER`` samples is forgotten, so a machine that became slower or faster is believed after a
few steps.

r is what the line misses: measured over predicted at the sizes that were met, interpolated over log(rows), constant
beyond. A CPU's matrix kernels are such a case: up to 3 rows cost as much as streaming the weights, then each adds its
multiply-adds (1B Q4_K_M, one thread: 43, 53, 75, 151 ms for 1, 3, 4 and 8 rows).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SAMPLES = 9  # of each size
FORGET_AFTER = 1000
SIZES_PER_OCTAVE = 8
SPAN = 3.0
LEAST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of work: ``fixed_s`` for the pass, ``row_s`` for each row."""

    fixed_s: float
    row_s: float

    def seconds(self, rows: float) -> float:
        """Return the seconds that *rows* rows take, never quite nothing."""
        return max(self.fixed_s + self.row_s * rows, LEAST_S)


class CostCurve:
    """Seconds by rows of one stage. *expected* is believed until something was measured."""

    def __init__(self, expected: Line) -> None:
        self.line = expected
        self._expected = expected
        self._samples: dict[int, deque[tuple[int, int, float]]] = {}  # size -> (when, rows, seconds)
        self._count = 0
        self._logs: list[float] = []
        self._ratios: list[float] = []

    def observe(self, rows: int, seconds: float) -> None:
        """Take one measurement; :meth:`fit` makes use of it."""
        size = round(SIZES_PER_OCTAVE * math.log2(rows))
        self._samples.setdefault(size, deque(maxlen=SAMPLES)).append((self._count, rows, max(seconds, LEAST_S)))
        self._count += 1

    def fit(self) -> None:
        """Draw the curve anew through what is remembered."""
        for size, samples in list(self._samples.items()):
            if samples[-1][0] < self._count - FORGET_AFTER:
                del self._samples[size]
        knots = [_middle(self._samples[size]) for size in sorted(self._samples)]
        self.line = fitted(knots, self._expected)
        self._logs = [math.log2(rows) for rows, _ in knots]
        self._ratios = [seconds / self.line.seconds(rows) for rows, seconds in knots]

    def seconds(self, rows: float) -> float:
        """Return the seconds that *rows* rows take."""
        return self.line.seconds(rows) * self._ratio(math.log2(max(rows, 1)))

    def _ratio(self, log: float) -> float:
        if not self._ratios:
            return 1.0
        i = bisect_left(self._logs, log)
        if i in (0, len(self._logs)):
            return self._ratios[min(i, len(self._logs) - 1)]
        share = (log - self._logs[i - 1]) / (self._logs[i] - self._logs[i - 1])
        return self._ratios[i - 1] + share * (self._ratios[i] - self._ratios[i - 1])


def _middle(samples: deque[tuple[int, int, float]]) -> tuple[float, float]:
    return median(rows for _, rows, _ in samples), median(seconds for _, _, seconds in samples)


def fitted(knots: Sequence[tuple[float, float]], expected: Line) -> Line:
    """The line that fits (rows, seconds) best in relative terms; *expected*, scaled, where they tell too little."""
    if not knots:
        return expected
    if max(rows for rows, _ in knots) < SPAN * min(rows for rows, _ in knots):
        scale = median(seconds / expected.seconds(rows) for rows, seconds in knots)
        return Line(expected.fixed_s * scale, expected.row_s * scale)
    w = [1.0 / seconds for _, seconds in knots]  # minimise sum((f * w + k * rows * w - 1)^2)
    u = [rows / seconds for rows, seconds in knots]
    ww, uu, wu = sum(x * x for x in w), sum(x * x for x in u), sum(x * y for x, y in zip(w, u, strict=True))
    determinant = ww * uu - wu * wu
    if determinant > 1e-9 * ww * uu:
        fixed_s = (sum(w) * uu - sum(u) * wu) / determinant
        row_s = (sum(u) * ww - sum(w) * wu) / determinant
        if fixed_s >= 0 and row_s >= 0:
            return Line(fixed_s, row_s)
        if fixed_s >= 0:
            return Line(sum(w) / ww, 0.0)
    return Line(0.0, sum(u) / uu)

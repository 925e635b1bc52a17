"""Pipeline parallelism, paced: how many microbatches may be in flight, and the token budget of each.

This is a cost model of the stages that run them, and of how prompts are cut (chunked prefill). A stage takes
s(rows) = f + k * rows (:mod:`costs`), the transfer to it and back l(rows). n sequences that decode are cut into G
groups of g = n / G that follow each other through the P stages:

    T_loop(g) = a(g) + w(g) + sum of s_i(g) + l_i(g)             until a group is back
    pace(g)   = max of s_i(g) + o_i(g), b(g), l_i(g) / 2, c(g)   between two groups at the slowest worker
    tokens/s  = n * min(1 / T_loop(g), 1 / (G * pace(g)))

Around the kernels a worker has an overhead o(rows): it reads, checks and answers, which is part of the transfer of a
group that is in flight alone, and of the worker's time when groups follow each other: 0.3 to 0.5 ms, with which five
groups of two rows were 0.88 times as fast over three stages of 1 + 1 ms a row as three of three rows. The broker is a
stage too: b(rows) is all that it does for a microbatch, of which a(rows), sampling and text, is in no transfer. Behind
each stage a group may find it sampling for another of the G - 1, and waits for half of that:
w = P * a / 2 * (G - 1) * a / T_loop, which matters where sampling takes milliseconds. c(g) is the sum of s_i(g) over
the stages on this machine, each times the share of its cores that it computes with: two workers of one thread each and
a head do not work at the same time on two cores.

More groups keep more stages busy until the slowest never waits, and then only repeat f. G is the one with the most
tokens per second, and a larger one only when it gains ``WORTH``: a message costs something too.

A prompt of T tokens in chunks of c takes T_loop(c) + (T / c - 1) * pace(c), least near c = sqrt(T * f / ((P - 1) * k)).
T_loop / pace chunks in flight keep the slowest worker busy. No chunk takes a worker longer than ``MAX_STEP_S`` (three
single tokens' time where those are slow), and while sequences decode, c is small enough that they wait at most
``MAX_SLOWDOWN`` times as long for their next token as without it, or as long as they will when all the prompts decode,
too: many clients that come together would otherwise wait long for few. A head is only asked for the rows whose logits
are wanted, and a chunk wants one at its end at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ollama_zmq.engine.costs import CostCurve, Line

WORTH = 1.02
MAX_STEP_S = 0.5
MAX_SLOWDOWN = 2.0
MAX_IN_FLIGHT = 32
REFIT_EVERY = 16  # microbatches; the first ones are believed at once
ZERO_COST = Line(0.0, 0.0)
BROKER = Line(4e-4, 5e-5)  # until it was measured: handling frames, and a sampled token with its text
SAMPLING = Line(5e-5, 4e-5)  # a sampled token with its text


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage is expected to cost before it was measured.

    Attributes:
        worker: the address of the one it runs on; stages of one worker wait for each other.
        work, transfer: seconds by rows of computing, and of the network to the worker and back.
        overhead: what the worker needs around the kernels, which the transfer has in it.
        wanted_only: it computes the rows whose logits are wanted, not all tokens.
        share: of this machine's cores that it computes with; 0 for another machine.
    """

    worker: str
    work: Line
    transfer: Line
    wanted_only: bool = False
    share: float = 0.0
    overhead: Line = ZERO_COST


class StageTime(msgspec.Struct, frozen=True):
    """What a stage took for one microbatch.

    Attributes:
        transfer_s: None when the worker was busy, which hides the transfer.
        overhead_s: of the worker around the kernels; None when it was not busy, which hides that.
    """

    rows: int
    work_s: float
    transfer_s: float | None
    overhead_s: float | None = None


@dataclass(frozen=True, slots=True)
class BrokerTime:
    """What the broker did for one microbatch: in all, and of that for sampling and text, behind the last stage."""

    tokens: int
    wanted: int
    busy_s: float
    sampling_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How microbatches follow each other.

    Attributes:
        groups: microbatches with decoding sequences in flight at most.
        depth: microbatches in flight at most while there is a prompt to prefill.
        chunk: tokens of prompts in one microbatch at most.
    """

    groups: int
    depth: int
    chunk: int


class Pacing:
    """The cost model of one loaded model's stages.

    Args:
        fixed: microbatches in flight, whatever the model would say; 0 lets it decide.
    """

    def __init__(self, stages: Sequence[StageCost], *, max_tokens: int, fixed: int = 0) -> None:
        self.max_tokens = max_tokens
        self.fixed = fixed
        self._stages = stages
        self._work = [CostCurve(stage.work) for stage in stages]
        self._transfer = [CostCurve(stage.transfer) for stage in stages]
        self._overhead = [CostCurve(stage.overhead) for stage in stages]
        self._busy, self._sampling = CostCurve(BROKER), CostCurve(SAMPLING)
        self._paces: dict[tuple[int, int, int], Pace] = {}
        self._groups: dict[int, int] = {}  # what was chosen last for so many sequences
        self._slowdowns: dict[tuple[int, int], float] = {}
        self._observed = 0

    def observe(self, times: Sequence[StageTime]) -> None:
        """Take what the stages took for one microbatch."""
        for time, work, transfer, overhead in zip(times, self._work, self._transfer, self._overhead, strict=True):
            if time.rows:
                work.observe(time.rows, time.work_s)
                if time.transfer_s is not None:
                    transfer.observe(time.rows, time.transfer_s)
                if time.overhead_s is not None:
                    overhead.observe(time.rows, time.overhead_s)
        self._observed += 1
        if self._observed < REFIT_EVERY or self._observed % REFIT_EVERY == 0:
            for curve in (*self._work, *self._transfer, *self._overhead, self._busy, self._sampling):
                curve.fit()
            self._paces.clear()
            self._slowdowns.clear()

    def observe_broker(self, time: BrokerTime) -> None:
        """Take what the broker did for one microbatch."""
        self._busy.observe(time.tokens, time.busy_s)
        if time.wanted:
            self._sampling.observe(time.wanted, time.sampling_s)

    def plan(self, decoding: int, prompt: int, prompts: int = 0) -> Pace:
        """The pace for so many sequences that decode and so many tokens of so many prompts."""
        if self.fixed or not self._stages:
            in_flight = max(self.fixed, 1)
            return Pace(in_flight, in_flight, self.max_tokens)
        key = decoding, prompt and 1 << prompt.bit_length(), prompts
        if key not in self._paces:
            self._paces[key] = self._planned(*key)
        return self._paces[key]

    def slowdown(self, decoding: int, rows: int) -> float:
        """How much longer a round takes when each of *decoding* sequences has *rows* rows in it instead of one."""
        key = decoding, rows
        if key not in self._slowdowns:
            groups = self.plan(decoding, 0).groups
            plain_s = self.round_s(decoding, groups)
            self._slowdowns[key] = self.round_s(decoding, groups, rows) / plain_s if plain_s else 1.0
        return self._slowdowns[key]

    def round_s(self, decoding: int, groups: int, rows: int = 1) -> float:
        """Seconds in which each of *decoding* sequences, in *groups* groups, has *rows* rows computed."""
        size, share = rows * math.ceil(decoding / groups), rows * decoding / groups
        loop_s, sampling_s = self.loop_s(size, size), self._sampling.seconds(size)
        busy = min((groups - 1) * sampling_s / loop_s, 1.0)  # how often one finds the broker sampling for another
        return max(loop_s + len(self._stages) * busy * sampling_s / 2, groups * self.pace_s(share, share))

    def prefill_s(self, prompt: int, chunk: int, wanted: float = 0.0) -> float:
        """Seconds of a prompt in chunks that follow each other, each beside *wanted* rows of sequences that decode."""
        more = max(prompt / chunk - 1, 0)
        return self.loop_s(wanted + chunk, wanted or 1) + more * self.pace_s(wanted + chunk, wanted)

    def loop_s(self, tokens: float, wanted: float) -> float:
        """Seconds that a microbatch is in flight when no other is."""
        rows = self._rows(tokens, wanted)
        stages_s = sum(self._work_s(i, r) + self._transfer[i].seconds(r) for i, r in enumerate(rows) if r)
        return stages_s + (self._sampling.seconds(wanted) if wanted else 0.0)

    def pace_s(self, tokens: float, wanted: float) -> float:
        """Seconds between two microbatches at the slowest worker."""
        workers: dict[str, float] = {}
        longest, shared = self._busy.seconds(tokens), 0.0
        for i, rows in enumerate(self._rows(tokens, wanted)):
            if not rows:
                continue
            stage, work_s = self._stages[i], self._work_s(i, rows)
            workers[stage.worker] = workers.get(stage.worker, 0.0) + work_s + self._overhead[i].seconds(rows)
            shared += stage.share * work_s
            longest = max(longest, self._transfer[i].line.row_s * rows / 2)
        return max(longest, shared, *workers.values())

    def _work_s(self, i: int, rows: float) -> float:
        return self._work[i].seconds(rows) if rows else 0.0

    def _rows(self, tokens: float, wanted: float) -> list[float]:
        return [wanted if stage.wanted_only else tokens for stage in self._stages]

    def _planned(self, decoding: int, prompt: int, prompts: int) -> Pace:
        groups = self._best_groups(decoding) if decoding else 1
        if not prompt:
            return Pace(groups, groups, self.max_tokens)
        wanted = decoding / groups
        longest_s = max(MAX_STEP_S, 3 * self.pace_s(1, 1))
        allowed_s = self._allowed_s(decoding, groups, prompts) if decoding else math.inf
        best, best_s = 1, math.inf
        for chunk in _sizes(self.max_tokens):
            pace_s = self.pace_s(wanted + chunk, wanted)
            if chunk > 1 and (pace_s > longest_s or self._gap_s(chunk, wanted, groups) > allowed_s):
                continue
            prefill_s = self.prefill_s(prompt, chunk, wanted)
            if prefill_s < best_s:
                best, best_s = chunk, prefill_s
        return Pace(groups, self._depth(best, wanted, groups), best)

    def _allowed_s(self, decoding: int, groups: int, prompts: int) -> float:
        """Seconds that who decodes may wait for a token: at least what it will be when the prompts decode, too."""
        return max(MAX_SLOWDOWN * self.round_s(decoding, groups), self.round_s(decoding + prompts, groups))

    def _gap_s(self, chunk: int, wanted: float, groups: int) -> float:
        """Seconds between two tokens of a sequence when every microbatch carries *chunk* tokens of a prompt."""
        depth = self._depth(chunk, wanted, groups)
        return max(self.loop_s(wanted + chunk, wanted), depth * self.pace_s(wanted + chunk, wanted))

    def _depth(self, chunk: int, wanted: float, groups: int) -> int:
        """Microbatches that keep the slowest worker busy; one more when nobody waits for a token."""
        full = self.loop_s(wanted + chunk, wanted) / self.pace_s(wanted + chunk, wanted)
        return min(max(round(full) + (not wanted), groups), MAX_IN_FLIGHT)

    def _best_groups(self, decoding: int) -> int:
        """The fewest groups with about the shortest round; those chosen last unless that is worth a change."""
        sizes = {math.ceil(decoding / groups) for groups in range(1, min(decoding, MAX_IN_FLIGHT) + 1)}
        rounds = {groups: self.round_s(decoding, groups) for groups in (math.ceil(decoding / size) for size in sizes)}
        best_s = min(rounds.values())
        chosen = self._groups.get(decoding, 1)
        if chosen not in rounds or rounds[chosen] > WORTH * best_s:
            chosen = min(groups for groups, round_s in rounds.items() if round_s <= (WORTH + 1) / 2 * best_s)
        self._groups[decoding] = chosen
        return chosen


def _sizes(max_tokens: int) -> list[int]:
    """Sizes of chunks that are worth comparing: 1, 2, 3, 4, 6, 8, 12, ... and the largest."""
    sizes = {size for power in range(max_tokens.bit_length()) for size in (1 << power, 3 << power >> 1)}
    return sorted(size for size in sizes | {max_tokens} if 0 < size <= max_tokens)

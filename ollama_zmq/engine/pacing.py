"""How many microbatches may be in flight, and how large they are: a cost model of the stages that run them.

A stage takes s(rows) = f + k * rows (:mod:`costs`), the way to it and back l(rows). n sequences that decode are cut
into G groups of g = n / G that follow each other through the P stages:

    T_loop(g) = a(g) + w(g) + sum of s_i(g) + l_i(g)             until a group is back
    pace(g)   = max of s_i(g) + o_i(g), b(g), l_i(g) / 2, c(g)   between two groups at the slowest place
    tokens/s  = n * min(1 / T_loop(g), 1 / (G * pace(g)))

Around the kernels a worker needs o(rows) to read, check and answer, which is part of the way of a group that flies
alone, and of the place's time when groups follow each other: 0.3 to 0.5 ms, with which five groups of two rows were
0.88 times as fast over three stages of 1 + 1 ms a row as three of three rows. The broker is a stage too: b(rows) is all
that it does for a microbatch, of which a(rows), sampling and text, is in no way. Behind each stage a group may find it
sampling for another of the G - 1, and waits for half of that: w = P * a / 2 * (G - 1) * a / T_loop, which matters where
sampling takes milliseconds. c(g) is the sum of s_i(g) over the stages on this machine, each times the share of its
cores that it computes with: two workers of one thread each and a head do not work at the same time on two cores.

More groups keep more stages busy until the slowest never waits, and then only repeat f. G is the one with the most
tokens per second, and a larger one only when it gains ``WORTH``: a message costs something too.

A prompt of T tokens in chunks of c takes T_loop(c) + (T / c - 1) * pace(c), least near c = sqrt(T * f / ((P - 1) * k)).
T_loop / pace chunks in flight keep the slowest place busy. No chunk takes a place longer than ``MAX_STEP_S`` (three
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
NOTHING = Line(0.0, 0.0)
BROKER = Line(4e-4, 5e-5)  # until it was measured: handling frames, and a sampled token with its text
AFTER = Line(5e-5, 4e-5)


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage is expected to cost before it was measured.

    Attributes:
        place: the worker it runs on; stages of one place wait for each other.
        work, way: seconds by rows of computing, and of the way to the worker and back.
        turn: what the worker needs around the kernels, which the way has in it.
        wanted_only: it computes the rows whose logits are wanted, not all tokens.
        share: of this machine's cores that it computes with; 0 for another machine.
    """

    place: str
    work: Line
    way: Line
    wanted_only: bool = False
    share: float = 0.0
    turn: Line = NOTHING


class StageTime(msgspec.Struct, frozen=True):
    """What a stage took for one microbatch.

    Attributes:
        way_s: None when the worker was busy, which hides the way.
        turn_s: of the worker around the kernels; None when it was not busy, which hides that.
    """

    rows: int
    work_s: float
    way_s: float | None
    turn_s: float | None = None


@dataclass(frozen=True, slots=True)
class BrokerTime:
    """What the broker did for one microbatch: in all, and of that behind the last stage (sampling, text)."""

    tokens: int
    wanted: int
    busy_s: float
    after_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How to go on.

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
        self._way = [CostCurve(stage.way) for stage in stages]
        self._turn = [CostCurve(stage.turn) for stage in stages]
        self._busy, self._after = CostCurve(BROKER), CostCurve(AFTER)
        self._plans: dict[tuple[int, int, int], Plan] = {}
        self._groups: dict[int, int] = {}  # what was chosen last for so many sequences
        self._slowdowns: dict[tuple[int, int], float] = {}
        self._observed = 0

    def observe(self, times: Sequence[StageTime]) -> None:
        """Take what the stages took for one microbatch."""
        for time, work, way, turn in zip(times, self._work, self._way, self._turn, strict=True):
            if time.rows:
                work.observe(time.rows, time.work_s)
                if time.way_s is not None:
                    way.observe(time.rows, time.way_s)
                if time.turn_s is not None:
                    turn.observe(time.rows, time.turn_s)
        self._observed += 1
        if self._observed < REFIT_EVERY or self._observed % REFIT_EVERY == 0:
            for curve in (*self._work, *self._way, *self._turn, self._busy, self._after):
                curve.fit()
            self._plans.clear()
            self._slowdowns.clear()

    def observe_broker(self, time: BrokerTime) -> None:
        """Take what the broker did for one microbatch."""
        self._busy.observe(time.tokens, time.busy_s)
        if time.wanted:
            self._after.observe(time.wanted, time.after_s)

    def plan(self, decoding: int, prompt: int, prompts: int = 0) -> Plan:
        """The plan for so many sequences that decode and so many tokens of so many prompts."""
        if self.fixed or not self._stages:
            in_flight = max(self.fixed, 1)
            return Plan(in_flight, in_flight, self.max_tokens)
        key = decoding, prompt and 1 << prompt.bit_length(), prompts
        if key not in self._plans:
            self._plans[key] = self._planned(*key)
        return self._plans[key]

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
        loop_s, after_s = self.loop_s(size, size), self._after.seconds(size)
        busy = min((groups - 1) * after_s / loop_s, 1.0)  # how often a microbatch finds the broker sampling for another
        return max(loop_s + len(self._stages) * busy * after_s / 2, groups * self.pace_s(share, share))

    def prefill_s(self, prompt: int, chunk: int, wanted: float = 0.0) -> float:
        """Seconds of a prompt in chunks that follow each other, each beside *wanted* rows of sequences that decode."""
        more = max(prompt / chunk - 1, 0)
        return self.loop_s(wanted + chunk, wanted or 1) + more * self.pace_s(wanted + chunk, wanted)

    def loop_s(self, tokens: float, wanted: float) -> float:
        """Seconds that a microbatch is in flight when no other is."""
        rows = self._rows(tokens, wanted)
        stages_s = sum(self._work_s(i, r) + self._way[i].seconds(r) for i, r in enumerate(rows) if r)
        return stages_s + (self._after.seconds(wanted) if wanted else 0.0)

    def pace_s(self, tokens: float, wanted: float) -> float:
        """Seconds between two microbatches at the slowest place."""
        places: dict[str, float] = {}
        longest, shared = self._busy.seconds(tokens), 0.0
        for i, rows in enumerate(self._rows(tokens, wanted)):
            if not rows:
                continue
            stage, work_s = self._stages[i], self._work_s(i, rows)
            places[stage.place] = places.get(stage.place, 0.0) + work_s + self._turn[i].seconds(rows)
            shared += stage.share * work_s
            longest = max(longest, self._way[i].line.row_s * rows / 2)
        return max(longest, shared, *places.values())

    def _work_s(self, i: int, rows: float) -> float:
        return self._work[i].seconds(rows) if rows else 0.0

    def _rows(self, tokens: float, wanted: float) -> list[float]:
        return [wanted if stage.wanted_only else tokens for stage in self._stages]

    def _planned(self, decoding: int, prompt: int, prompts: int) -> Plan:
        groups = self._best_groups(decoding) if decoding else 1
        if not prompt:
            return Plan(groups, groups, self.max_tokens)
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
        return Plan(groups, self._depth(best, wanted, groups), best)

    def _allowed_s(self, decoding: int, groups: int, prompts: int) -> float:
        """Seconds that who decodes may wait for a token: at least what it will be when the prompts decode, too."""
        return max(MAX_SLOWDOWN * self.round_s(decoding, groups), self.round_s(decoding + prompts, groups))

    def _gap_s(self, chunk: int, wanted: float, groups: int) -> float:
        """Seconds between two tokens of a sequence when every microbatch carries *chunk* tokens of a prompt."""
        depth = self._depth(chunk, wanted, groups)
        return max(self.loop_s(wanted + chunk, wanted), depth * self.pace_s(wanted + chunk, wanted))

    def _depth(self, chunk: int, wanted: float, groups: int) -> int:
        """Microbatches that keep the slowest place busy; one more when nobody waits for a token."""
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

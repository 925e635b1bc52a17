"""Placement (partitioning): which worker gets which layers, an exact plan from measured speeds, links and memory.

Pipeline parallelism only: no matrix is cut over workers (tensor parallelism), nor are experts.

Stages are contiguous runs of layers, in the order the workers were named. A stage's time for one decoded token is what
the engine's cost model expects of one row: its work on that worker, and the transfer there and back
(:mod:`ollama_zmq.cluster.cost_model`). The output head is a stage of the local device, behind all others.

``THROUGHPUT`` (workers that were named are used) minimises the slowest worker, which a transfer does not keep busy,
then the sum; each worker gets at least one layer while there are as many layers as workers. ``FASTEST`` minimises the
sum, which is what one stream waits for, and may leave workers out. A stage must fit its worker's budget: weights and 10
% besides, KV cache at the requested context, scratch memory. What no worker can hold goes to the local device, as the
last stage of layers; its budget is what embedding and head leave.

The search is dynamic programming over (workers used, layers placed), O(workers · layers²): 80 layers over 8 workers
take 30 ms.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate

from ollama_zmq.cluster.cost_model import CostEstimate, WorkerProfile
from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import SAMPLING
from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.ops.state import PAGE_SLOTS
from ollama_zmq.units import human_bytes

WEIGHT_HEADROOM = 1.1
TIE = 1 + 1e-9  # sums of equal times differ by rounding
_INFINITE = float("inf")
ANY_TYPE = -1
NO_COST = CostEstimate()


class Policy(Enum):
    """What the plan is for. The values are those of ``OLLAMA_RPC_POLICY``."""

    THROUGHPUT = "throughput"
    FASTEST = "fastest"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of the places that hold it.

    Attributes:
        layer_nbytes: weight bytes of each layer.
        kv_nbytes: of one layer at the requested context, all sequences.
        scratch_nbytes: activations of one pass, once per stage.
        head_nbytes: embedding and output head, which stay on the local device.
        layer_costs: what one token asks of each layer; none is to read its bytes. head_cost: of the head.
        hidden_size: numbers of one token's hidden state.
        num_ctx: slots of one sequence that ``kv_nbytes`` is for; num_parallel: sequences that were asked for.
    """

    layer_nbytes: tuple[int, ...]
    kv_nbytes: int
    scratch_nbytes: int
    head_nbytes: int
    layer_costs: tuple[CostEstimate, ...] = ()
    head_cost: CostEstimate = NO_COST
    hidden_size: int = 0
    num_ctx: int = 0
    num_parallel: int = 0

    def need(self, layers: range) -> int:
        """Bytes of memory that *layers* take as one stage."""
        return self.stage_need(sum(self.layer_nbytes[layers.start : layers.stop]), len(layers))

    def stage_need(self, weight_nbytes: int, n_layers: int) -> int:
        """Bytes of memory that a stage of *n_layers* layers with so many bytes of weights takes."""
        return int(weight_nbytes * WEIGHT_HEADROOM) + self.kv_nbytes * n_layers + self.scratch_nbytes

    def with_kv(self, kv_nbytes: int) -> Demand:
        """Return the same with a KV cache of so many bytes a layer."""
        return replace(self, kv_nbytes=kv_nbytes)

    @property
    def costs(self) -> tuple[CostEstimate, ...]:
        """What one token asks of each layer."""
        return self.layer_costs or tuple(CostEstimate({ANY_TYPE: (nbytes, 0.0)}) for nbytes in self.layer_nbytes)

    @property
    def head_need(self) -> int:
        """Bytes of memory that embedding and output head take."""
        return int(self.head_nbytes * WEIGHT_HEADROOM)


@dataclass(frozen=True, slots=True)
class Placement:
    """A plan.

    Attributes:
        stages: (address, layers), in pipeline order; every layer once.
        token_s: predicted time of one decoded token through all stages.
        local_token_s: the same on the local device alone; infinite when it does not fit there.
        notes: what the person who named the workers should know.
        comparison: that this machine alone would be faster, if it would and the policy does not see to it.
    """

    stages: tuple[tuple[str, range], ...]
    token_s: float
    local_token_s: float
    notes: tuple[str, ...] = ()
    comparison: str = ""

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The comparison, if there is one, and the notes."""
        return (self.comparison, *self.notes) if self.comparison else self.notes


def place(
    demand: Demand, workers: Sequence[WorkerProfile], local: WorkerProfile, policy: Policy = Policy.THROUGHPUT
) -> Placement:
    """Return the best plan for *demand* over *workers*, and *local* where they do not suffice.

    Raises:
        OutOfDeviceMemory: it does not fit even with the local device; the message names every budget, the need, and
            the context that would fit.
    """
    table, n = CostTable(demand, [*workers, local]), len(demand.layer_nbytes)
    alone = [(len(workers), range(n))] if table.stage_s(len(workers), 0, n) < _INFINITE else None
    if not workers:
        stages = alone
    elif policy is Policy.FASTEST:
        over_workers = _search(table, least=[0] * len(table.profiles), slowest=False)  # of which only some wait for the
        stages = min(filter(None, (over_workers, alone)), key=table.token_s, default=None)  # way to a head elsewhere
    else:
        each = [1] * min(len(workers), n)
        spare = [0] * (len(table.profiles) - len(each) - 1)
        stages = (
            _balanced(table, least=[*each, *spare, None])
            or _balanced(table, least=[*each, *spare, 0])
            or _balanced(table, least=[0] * len(table.profiles))
        )
    if stages is None or demand.head_need > local.budget:
        raise _too_large(demand, table.profiles)
    return _with_notes(table, stages, alone, policy)


class CostTable:
    """What every run of layers costs on every worker; sums over layers are differences of sums from the first one."""

    def __init__(self, demand: Demand, profiles: Sequence[WorkerProfile]) -> None:
        self.demand = demand
        self.profiles = profiles
        self._held = [0, *accumulate(demand.layer_nbytes)]
        self._compute_s = [_sums([_alone_s(profile.compute(cost)) for cost in demand.costs]) for profile in profiles]
        self._transfer_s = [_alone_s(profile.transfer(demand.hidden_size)) for profile in profiles]
        self.head_s = _alone_s(profiles[-1].compute(demand.head_cost))
        self._for_layers = _budgets_for_layers(demand, profiles)

    def stage_s(self, j: int, start: int, stop: int) -> float:
        """Time of layers start..stop-1 on worker j; infinite when they do not fit its budget."""
        return self._layers_s(j, start, stop) + self._transfer_s[j] if start < stop else 0.0

    def busy_s(self, j: int, start: int, stop: int) -> float:
        """Time that they keep worker j busy for one token; the local device, the last one, has the head too."""
        layers_s = self._layers_s(j, start, stop)
        return layers_s + self.head_s if j == len(self.profiles) - 1 else layers_s

    def _layers_s(self, j: int, start: int, stop: int) -> float:
        need = self.demand.stage_need(self._held[stop] - self._held[start], stop - start)
        if start < stop and need > self._for_layers[j]:
            return _INFINITE
        return self._compute_s[j][stop] - self._compute_s[j][start]

    def token_s(self, stages: list[tuple[int, range]] | None) -> float:
        """Time of one token through *stages* and the head."""
        if stages is None:
            return _INFINITE
        local = len(self.profiles) - 1
        stages_s = sum(self.stage_s(j, layers.start, layers.stop) for j, layers in stages)
        head_s = self.head_s if all(j == local for j, _ in stages) else self.head_s + self._transfer_s[local]
        return stages_s + head_s + SAMPLING.seconds(1)


def _budgets_for_layers(demand: Demand, profiles: Sequence[WorkerProfile]) -> list[int]:
    """What each place may use for layers: embedding and head come first, on the local device, the last of them."""
    *workers, local = profiles
    return [*(worker.budget for worker in workers), local.budget - demand.head_need]


def _sums(values: Sequence[float]) -> list[float]:
    return [0.0, *accumulate(values)]


def _alone_s(line: Line) -> float:
    """Seconds of one row, without the least that ``Line.seconds`` has: a sum over layers would count it for each."""
    return line.fixed_s + line.row_s


def _balanced(table: CostTable, least: Sequence[int | None]) -> list[tuple[int, range]] | None:
    """Minimise the slowest place; among such plans, the sum."""
    first = _search(table, least, slowest=True)
    if first is None:
        return None
    limit = max(table.head_s, *(table.busy_s(j, r.start, r.stop) for j, r in first))
    return _search(table, least, slowest=False, limit=limit)


def _search(
    table: CostTable, least: Sequence[int | None], *, slowest: bool, limit: float = _INFINITE
) -> list[tuple[int, range]] | None:
    """Cut the layers over the workers, at least *least[j]* to worker j and none where that is None.

    What is smallest is the time of the slowest place, or the sum of the stages' times while no place takes longer than
    *limit*. ``best[i]`` is that of layers 0..i-1 on the workers seen so far; of equal plans, earlier workers get more.
    """
    n = len(table.demand.layer_nbytes)
    best: list[float] = [0.0] + [_INFINITE] * n
    choices: list[list[int]] = []
    for j, at_least in enumerate(least):
        reached = [_INFINITE] * (n + 1)
        choice = [-1] * (n + 1)
        for stop in range(n + 1):
            for start in [stop] if at_least is None else range(stop - at_least + 1):
                stage_s = table.stage_s(j, start, stop)
                busy_s = table.busy_s(j, start, stop)
                cost = max(best[start], busy_s) if slowest else best[start] + stage_s
                if cost < _INFINITE and cost <= reached[stop] * TIE and busy_s <= limit:
                    reached[stop], choice[stop] = cost, start
        best = reached
        choices.append(choice)
    return _path(choices, n) if best[n] < _INFINITE else None


def _path(choices: list[list[int]], n: int) -> list[tuple[int, range]]:
    """The stages that were chosen, from the last layer back to the first."""
    stages, stop = [], n
    for j in range(len(choices) - 1, -1, -1):
        start = choices[j][stop]
        if start < stop:
            stages.append((j, range(start, stop)))
        stop = start
    return stages[::-1]


def _with_notes(
    table: CostTable, stages: list[tuple[int, range]], alone: list[tuple[int, range]] | None, policy: Policy
) -> Placement:
    token_s, alone_s = table.token_s(stages), table.token_s(alone)
    profiles, notes, comparison = table.profiles, list[str](), ""
    if alone_s < token_s and policy is Policy.THROUGHPUT:
        comparison = (
            f"this machine alone is predicted to decode at {1 / alone_s:.1f} tokens/s, this plan at {1 / token_s:.1f}; "
            "OLLAMA_RPC_POLICY=fastest lets the planner leave workers out"
        )
    if len(profiles) > 1 and policy is Policy.THROUGHPUT and any(profiles[j] is profiles[-1] for j, _ in stages):
        notes.append("the workers' memory does not hold every layer: the rest runs on this machine")
    placed = tuple((profiles[j].address, layers) for j, layers in stages)
    left_out = [
        profile.address for profile in profiles[:-1] if profile.address not in {address for address, _ in placed}
    ]
    if left_out:
        notes.append(f"not used: {', '.join(left_out)}")
    return Placement(placed, token_s, alone_s, tuple(notes), comparison)


def _too_large(demand: Demand, profiles: Sequence[WorkerProfile]) -> OutOfDeviceMemory:
    n = len(demand.layer_nbytes)
    need = demand.need(range(n)) + demand.head_need
    budgets = ", ".join(f"{profile.address} {human_bytes(max(profile.budget, 0))}" for profile in profiles)
    num_ctx = largest_context(demand, profiles)
    times = f" times {demand.num_parallel}" if demand.num_parallel > 1 else ""
    return OutOfDeviceMemory(
        f"the model needs {human_bytes(need)} with the KV cache of num_ctx {demand.num_ctx}{times}, and there is "
        f"{budgets}: {_remedies(demand, num_ctx, has_workers=len(profiles) > 1)}",
        need=need,
        num_ctx=num_ctx,
    )


def _remedies(demand: Demand, num_ctx: int, *, has_workers: bool) -> str:
    remedies = [
        (num_ctx > 0, f"num_ctx {num_ctx} would fit"),
        (demand.num_parallel > 1, "lower OLLAMA_NUM_PARALLEL"),
        (has_workers, "raise -m"),
        (True, "add a worker"),
    ]
    return ", or ".join(remedy for helps, remedy in remedies if helps)


def largest_context(demand: Demand, profiles: Sequence[WorkerProfile]) -> int:
    """The largest context below that of *demand* that fits, in whole pages; 0 when none does."""
    most = demand.num_ctx // PAGE_SLOTS
    pages = bisect_left(range(1, most + 1), True, key=lambda n: not _fits(_with_pages(demand, n), profiles))
    return pages * PAGE_SLOTS


def _with_pages(demand: Demand, n: int) -> Demand:
    pages = -(-demand.num_ctx // PAGE_SLOTS)
    return replace(demand, kv_nbytes=demand.kv_nbytes * n // pages, num_ctx=n * PAGE_SLOTS)


def _fits(demand: Demand, profiles: Sequence[WorkerProfile]) -> bool:
    """Whether the layers fit when each worker in turn takes as many as it can hold."""
    placed, n = 0, len(demand.layer_nbytes)
    budgets = _budgets_for_layers(demand, profiles)
    if budgets[-1] < 0:
        return False
    for free in budgets:
        placed += bisect_left(range(placed + 1, n + 1), True, key=lambda stop: demand.need(range(placed, stop)) > free)
    return placed == n

"""Which worker gets which layers: an exact plan from measured speeds, links and memory budgets.

Stages are contiguous runs of layers, in the order the workers were named. A stage's time for one decoded token is

    s = bytes that it reads of its layers / bytes per second of its worker + round trip to it

The output head is a stage of the local device, behind all others. ``THROUGHPUT`` (workers that were named are used)
minimises the slowest place, then the sum; each worker gets at least one layer while there are as many layers as
workers. ``FASTEST`` minimises the sum, which is what one stream waits for, and may leave workers out. A stage must fit
its worker's budget: weights and 10 % besides, KV cache at the requested context, scratch memory. What no worker can
hold goes to the local device, as the last stage of layers; its budget is what embedding and head leave.

The search is dynamic programming over (workers used, layers placed), O(workers · layers²): 80 layers over 8 workers
take 60 ms.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.ops.program import PAGE_SLOTS
from ollama_zmq.units import human_bytes

WEIGHT_HEADROOM = 1.1
_INFINITE = float("inf")


class Policy(Enum):
    """What the plan is for. The values are those of ``OLLAMA_RPC_POLICY``."""

    THROUGHPUT = "throughput"
    FASTEST = "fastest"


@dataclass(frozen=True, slots=True)
class Site:
    """A place that can hold layers.

    Attributes:
        budget: bytes it may use for this model.
        decode_bytes_per_s, prefill_macs_per_s: measured speeds of streaming weights and of multiplying.
        rtt_s, bandwidth_bytes_per_s: of the link, a round trip of one hidden state, and bytes; 0 for the local device.
    """

    address: str
    budget: int
    decode_bytes_per_s: float
    prefill_macs_per_s: float = 1e12
    rtt_s: float = 0.0
    bandwidth_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of the places that hold it.

    Attributes:
        layer_nbytes: weight bytes of each layer.
        kv_nbytes: of one layer at the requested context, all sequences.
        scratch_nbytes: activations of one pass, once per stage.
        head_nbytes: embedding and output head, which stay on the local device.
        streamed_nbytes: weight bytes of each layer that one token needs, if not all: not the experts it does not use.
        streamed_head_nbytes: of the head.
        num_ctx: slots of one sequence that ``kv_nbytes`` is for.
    """

    layer_nbytes: tuple[int, ...]
    kv_nbytes: int
    scratch_nbytes: int
    head_nbytes: int
    streamed_nbytes: tuple[int, ...] = ()
    streamed_head_nbytes: int = 0
    num_ctx: int = 0

    def need(self, layers: range) -> int:
        """Bytes of memory that *layers* take as one stage."""
        weights = sum(self.layer_nbytes[layers.start : layers.stop])
        return int(weights * WEIGHT_HEADROOM) + self.kv_nbytes * len(layers) + self.scratch_nbytes

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
    """

    stages: tuple[tuple[str, range], ...]
    token_s: float
    local_token_s: float
    notes: tuple[str, ...] = ()


def place(demand: Demand, workers: Sequence[Site], local: Site, policy: Policy = Policy.THROUGHPUT) -> Placement:
    """Return the best plan for *demand* over *workers*, and *local* where they do not suffice.

    Raises:
        OutOfDeviceMemory: it does not fit even with the local device; the message names every budget, the need, and
            the context that would fit.
    """
    n = len(demand.layer_nbytes)
    sites = [*workers, local]
    alone = [(len(workers), range(n))] if _stage_s(demand, sites, len(workers), 0, n) < _INFINITE else None
    if not workers:
        stages = alone
    elif policy is Policy.FASTEST:
        stages = _search(demand, sites, least=[0] * len(sites), slowest=False)
    else:
        each = [1] * min(len(workers), n)
        spare = [0] * (len(sites) - len(each) - 1)
        stages = (
            _balanced(demand, sites, least=[*each, *spare, None])
            or _balanced(demand, sites, least=[*each, *spare, 0])
            or _balanced(demand, sites, least=[0] * len(sites))
        )
    if stages is None or demand.head_need > local.budget:
        raise _too_large(demand, sites)
    return _with_notes(demand, sites, stages, alone, policy)


def _balanced(demand: Demand, sites: Sequence[Site], least: Sequence[int | None]) -> list[tuple[int, range]] | None:
    """Minimise the slowest place; among such plans, the sum."""
    first = _search(demand, sites, least, slowest=True)
    if first is None:
        return None
    limit = max(_head_s(demand, sites[-1]), *(_place_s(demand, sites, j, r.start, r.stop) for j, r in first))
    return _search(demand, sites, least, slowest=False, limit=limit)


def _search(
    demand: Demand, sites: Sequence[Site], least: Sequence[int | None], *, slowest: bool, limit: float = _INFINITE
) -> list[tuple[int, range]] | None:
    """Cut the layers over *sites*, at least *least[j]* to site j and none where that is None.

    What is smallest is the time of the slowest place, or the sum of the stages' times while no place takes longer than
    *limit*. ``best[i]`` is that of layers 0..i-1 on the sites seen so far; earlier sites win ties with more layers.
    """
    n = len(demand.layer_nbytes)
    best: list[float] = [0.0] + [_INFINITE] * n
    choices: list[list[int]] = []
    for j, at_least in enumerate(least):
        reached = [_INFINITE] * (n + 1)
        choice = [-1] * (n + 1)
        for stop in range(n + 1):
            for start in [stop] if at_least is None else range(stop - at_least + 1):
                place_s = _place_s(demand, sites, j, start, stop)
                if place_s > limit:
                    continue
                cost = max(best[start], place_s) if slowest else best[start] + _stage_s(demand, sites, j, start, stop)
                if cost < reached[stop]:
                    reached[stop], choice[stop] = cost, start
        best = reached
        choices.append(choice)
    if best[n] == _INFINITE:
        return None
    stages, stop = [], n
    for j in range(len(sites) - 1, -1, -1):
        start = choices[j][stop]
        if start < stop:
            stages.append((j, range(start, stop)))
        stop = start
    return stages[::-1]


def _place_s(demand: Demand, sites: Sequence[Site], j: int, start: int, stop: int) -> float:
    """Time that site j is busy for one token, which for the local device, the last one, includes the head."""
    return _stage_s(demand, sites, j, start, stop) + (_head_s(demand, sites[-1]) if j == len(sites) - 1 else 0.0)


def _stage_s(demand: Demand, sites: Sequence[Site], j: int, start: int, stop: int) -> float:
    """Time of layers start..stop-1 on site j; infinite when they do not fit its budget."""
    if start == stop:
        return 0.0
    site = sites[j]
    if demand.need(range(start, stop)) > _room(demand, sites, j):
        return _INFINITE
    return sum((demand.streamed_nbytes or demand.layer_nbytes)[start:stop]) / site.decode_bytes_per_s + site.rtt_s


def _head_s(demand: Demand, local: Site) -> float:
    return demand.streamed_head_nbytes / local.decode_bytes_per_s


def _room(demand: Demand, sites: Sequence[Site], j: int) -> int:
    """Bytes for layers on site j; on the local device, the last one, embedding and head come first."""
    return sites[j].budget - (demand.head_need if j == len(sites) - 1 else 0)


def _with_notes(
    demand: Demand,
    sites: Sequence[Site],
    stages: list[tuple[int, range]],
    alone: list[tuple[int, range]] | None,
    policy: Policy,
) -> Placement:
    token_s, alone_s = _token_s(demand, sites, stages), _token_s(demand, sites, alone)
    notes = []
    if alone_s < token_s and policy is Policy.THROUGHPUT:
        notes.append(
            f"this machine alone is predicted to decode at {1 / alone_s:.1f} tokens/s, this plan at {1 / token_s:.1f}; "
            "OLLAMA_RPC_POLICY=fastest lets the planner leave workers out"
        )
    if len(sites) > 1 and policy is Policy.THROUGHPUT and any(sites[j] is sites[-1] for j, _ in stages):
        notes.append("the workers' memory does not hold every layer: the rest runs on this machine")
    placed = tuple((sites[j].address, layers) for j, layers in stages)
    left_out = [site.address for site in sites[:-1] if site.address not in {address for address, _ in placed}]
    if left_out:
        notes.append(f"not used: {', '.join(left_out)}")
    return Placement(placed, token_s, alone_s, tuple(notes))


def _token_s(demand: Demand, sites: Sequence[Site], stages: list[tuple[int, range]] | None) -> float:
    """Time of one token through *stages* and the head."""
    if stages is None:
        return _INFINITE
    return sum(_stage_s(demand, sites, j, r.start, r.stop) for j, r in stages) + _head_s(demand, sites[-1])


def _too_large(demand: Demand, sites: Sequence[Site]) -> OutOfDeviceMemory:
    n = len(demand.layer_nbytes)
    need = demand.need(range(n)) + demand.head_need
    budgets = ", ".join(f"{site.address} {human_bytes(max(site.budget, 0))}" for site in sites)
    num_ctx = largest_context(demand, sites)
    remedy = f"num_ctx {num_ctx} would fit; or raise -m, or add a worker" if num_ctx else "raise -m, or add a worker"
    return OutOfDeviceMemory(
        f"the model needs {human_bytes(need)} with the KV cache of num_ctx {demand.num_ctx}, and there is "
        f"{budgets}: {remedy}",
        need=need,
        num_ctx=num_ctx,
    )


def largest_context(demand: Demand, sites: Sequence[Site]) -> int:
    """The largest context below that of *demand* that fits, in whole pages; 0 when none does."""
    most = demand.num_ctx // PAGE_SLOTS
    pages = bisect_left(range(1, most + 1), True, key=lambda n: not _fits(_with_pages(demand, n), sites))
    return pages * PAGE_SLOTS


def _with_pages(demand: Demand, n: int) -> Demand:
    pages = -(-demand.num_ctx // PAGE_SLOTS)
    return replace(demand, kv_nbytes=demand.kv_nbytes * n // pages, num_ctx=n * PAGE_SLOTS)


def _fits(demand: Demand, sites: Sequence[Site]) -> bool:
    """Whether the layers fit when each site in turn takes as many as it can hold."""
    placed, n = 0, len(demand.layer_nbytes)
    if demand.head_need > sites[-1].budget:
        return False
    for j in range(len(sites)):
        room = _room(demand, sites, j)
        placed += bisect_left(range(placed + 1, n + 1), True, key=lambda stop: demand.need(range(placed, stop)) > room)
    return placed == n

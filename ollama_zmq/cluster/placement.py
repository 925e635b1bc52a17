"""Which worker gets which layers: an exact plan from measured speeds, links and memory budgets.

Stages are contiguous runs of layers, in the order the workers were named. A stage's time for one decoded token is

    s = bytes that it reads of its layers / bytes per second of its worker + round trip to it

``THROUGHPUT`` (workers that were named are used) minimises the slowest stage, then the sum; each worker gets at least
one layer while there are as many layers as workers. ``FASTEST`` minimises the sum, which is what one stream waits for,
and may leave workers out. A stage must fit its worker's budget: weights and 10 % besides, KV cache at the requested
context, scratch memory. What no worker can hold goes to the local device, as the last stage.

The search is dynamic programming over (workers used, layers placed), O(workers · layers²): 80 layers over 8 workers
take 60 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from ollama_zmq.errors import OutOfDeviceMemory
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
        decode_bytes_per_s: measured speed of streaming weights.
        rtt_s: measured round trip of one hidden state.
    """

    address: str
    budget: int
    decode_bytes_per_s: float
    rtt_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of the places that hold it.

    Attributes:
        layer_nbytes: weight bytes of each layer.
        kv_nbytes: of one layer at the requested context, all sequences.
        scratch_nbytes: activations of one pass, once per stage.
        head_nbytes: embedding and output head, which stay on the local device.
        streamed_nbytes: weight bytes of each layer that one token needs, if not all: not the experts it does not use.
    """

    layer_nbytes: tuple[int, ...]
    kv_nbytes: int
    scratch_nbytes: int
    head_nbytes: int
    streamed_nbytes: tuple[int, ...] = ()

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
        OutOfDeviceMemory: it does not fit even with the local device; the message names every budget and the need.
    """
    alone = _stage_s(demand, local, 0, len(demand.layer_nbytes))
    if not workers:
        if alone == _INFINITE:
            raise _too_large(demand, [local])
        return Placement(((local.address, range(len(demand.layer_nbytes))),), alone, alone)
    if policy is Policy.FASTEST:
        stages = _search(demand, [*workers, local], least=[0] * (len(workers) + 1), join=lambda a, b: a + b)
    else:
        used = workers[: len(demand.layer_nbytes)]
        each = [1] * len(used)
        stages = (
            _balanced(demand, used, least=each)
            or _balanced(demand, [*used, local], least=[*each, 0])
            or _balanced(demand, [*used, local], least=[0] * (len(used) + 1))
        )
    if stages is None:
        raise _too_large(demand, [*workers, local])
    return _with_notes(demand, [*workers, local], stages, alone, policy)


def _balanced(demand: Demand, sites: Sequence[Site], least: Sequence[int]) -> list[tuple[int, range]] | None:
    """Minimise the slowest stage; among such plans, the sum."""
    first = _search(demand, sites, least, join=max)
    if first is None:
        return None
    slowest = max(_stage_s(demand, sites[j], layers.start, layers.stop) for j, layers in first)
    return _search(demand, sites, least, join=lambda a, b: a + b, limit=slowest)


def _search(
    demand: Demand,
    sites: Sequence[Site],
    least: Sequence[int],
    join: Callable[[float, float], float],
    limit: float = _INFINITE,
) -> list[tuple[int, range]] | None:
    """Cut the layers over *sites*, at least *least[j]* to site j, so that the joined stage times are smallest.

    ``best[i]`` is the cost of layers 0..i-1 on the sites seen so far; earlier sites win ties by taking more layers.
    """
    n = len(demand.layer_nbytes)
    best: list[float] = [0.0] + [_INFINITE] * n
    choices: list[list[int]] = []
    for site, at_least in zip(sites, least, strict=True):
        reached = [_INFINITE] * (n + 1)
        choice = [-1] * (n + 1)
        for stop in range(n + 1):
            for start in range(stop - at_least + 1):
                stage_s = _stage_s(demand, site, start, stop)
                cost = join(best[start], stage_s)
                if stage_s <= limit and cost < reached[stop]:
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


def _stage_s(demand: Demand, site: Site, start: int, stop: int) -> float:
    """Time of layers start..stop-1 on *site*; infinite when they do not fit its budget."""
    if start == stop:
        return 0.0
    if demand.need(range(start, stop)) > site.budget:
        return _INFINITE
    return sum((demand.streamed_nbytes or demand.layer_nbytes)[start:stop]) / site.decode_bytes_per_s + site.rtt_s


def _with_notes(
    demand: Demand, sites: Sequence[Site], stages: list[tuple[int, range]], alone: float, policy: Policy
) -> Placement:
    token_s = sum(_stage_s(demand, sites[j], layers.start, layers.stop) for j, layers in stages)
    notes = []
    if alone < token_s and policy is Policy.THROUGHPUT:
        notes.append(
            f"this machine alone is predicted to decode at {1 / alone:.1f} tokens/s, this plan at {1 / token_s:.1f}; "
            "OLLAMA_RPC_POLICY=fastest lets the planner leave workers out"
        )
    if policy is Policy.THROUGHPUT and any(sites[j] is sites[-1] for j, _ in stages):
        notes.append("the workers' memory does not hold every layer: the rest runs on this machine")
    placed = tuple((sites[j].address, layers) for j, layers in stages)
    left_out = [site.address for site in sites[:-1] if site.address not in {address for address, _ in placed}]
    if left_out:
        notes.append(f"not used: {', '.join(left_out)}")
    return Placement(placed, token_s, alone, tuple(notes))


def _too_large(demand: Demand, sites: Sequence[Site]) -> OutOfDeviceMemory:
    n = len(demand.layer_nbytes)
    need = demand.need(range(n))
    budgets = ", ".join(f"{site.address} {human_bytes(max(site.budget, 0))}" for site in sites)
    return OutOfDeviceMemory(
        f"the model's {n} layers need {human_bytes(need)} with their KV cache, and the budgets are {budgets}: "
        "raise -m, add a worker, or lower num_ctx",
        need=need,
    )

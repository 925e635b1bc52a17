"""Planning one load from a snapshot of the cluster: what is evicted, where the layers go, how many contexts fit.

**Contexts.** A model gets KV pages for ``num_parallel`` contexts when that was asked for. Otherwise for ``CONTEXTS``,
or as many as leave the plan what it is with one: no layer moves to a slower worker, and no model fails to load or is
evicted, for the sake of requests that may never come. How many sequences run at once is then up to their lengths:
admission goes by pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ollama_zmq.cluster.evictions import plan_evictions
from ollama_zmq.cluster.placement import Demand, Placement
from ollama_zmq.cluster.snapshot import ClusterSnapshot
from ollama_zmq.cluster.stages import LoadOrder, Missing, Stage, demand_of, stages_of
from ollama_zmq.errors import MemoryInUse, OutOfDeviceMemory, Unreachable

CONTEXTS = 4


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where a model goes.

    Attributes:
        order: with the contexts that fit; demand: of the model with so many.
        evicted: the models that must be unloaded before.
    """

    order: LoadOrder
    demand: Demand
    placement: Placement
    stages: tuple[Stage, ...]
    evicted: frozenset[int]


def plan_load(order: LoadOrder, snapshot: ClusterSnapshot, restarts: int = 0) -> LoadPlan:
    """The plan of *order* beside the other models of *snapshot*, of which those may go that the order names.

    Raises:
        OutOfDeviceMemory: it does not fit; the message names who is missing.
    """
    order = replace(order, contexts=1)
    demand, replaced, policy = demand_of(order), {order.replaces}, order.policy
    idle, busy = ([model for model in models if model in snapshot.held] for models in (order.idle, order.busy))
    try:
        placement, evicted = plan_evictions(
            lambda evicted: snapshot.plan(demand, policy, evicted | replaced), idle, busy, snapshot.reload_s
        )
    except OutOfDeviceMemory as error:
        if not snapshot.missing:
            raise
        raise OutOfDeviceMemory(f"{error}; missing: {'; '.join(snapshot.missing)}", **error.facts) from None
    free = evicted | replaced
    order = with_contexts(order, demand, placement, lambda roomy: snapshot.plan(roomy, policy, free))
    demand = demand.with_kv(order.kv_nbytes)
    return LoadPlan(order, demand, placement, stages_of(order, demand, placement, restarts), evicted)


def plan_at_once(order: LoadOrder, snapshot: ClusterSnapshot, restarts: int) -> LoadPlan:
    """The plan of *order* if it can be loaded as things are; *restarts*: how often its load has begun anew.

    Raises:
        Unreachable: a worker is missing, and the order says not to go on without.
        MemoryInUse: other models must go first.
        OutOfDeviceMemory: it does not fit.
    """
    if snapshot.missing and order.missing is not Missing.USE_REST:
        raise Unreachable("; ".join(snapshot.missing))
    plan = plan_load(order, snapshot, restarts)
    if plan.evicted:
        names = ", ".join(snapshot.names[model] for model in sorted(plan.evicted))
        raise MemoryInUse(f"{order.name} needs memory that other models have: {names}", models=plan.evicted)
    return plan


def with_contexts(
    order: LoadOrder, demand: Demand, placement: Placement, plan: Callable[[Demand], Placement]
) -> LoadOrder:
    """Return *order* with as many contexts as leave the plan what it is, *placement*, with the *demand* of one."""
    for contexts in range(CONTEXTS, 1, -1) if not order.num_parallel else ():
        roomy = replace(order, contexts=contexts)
        try:
            if plan(demand.with_kv(roomy.kv_nbytes)).stages == placement.stages:
                return roomy
        except OutOfDeviceMemory:
            continue
    return order

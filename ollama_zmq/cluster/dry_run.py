"""What loading a model would do, for every sensible choice of workers: layers, bytes, predicted speeds.

    this machine alone, each worker alone, all workers, and the policy "fastest", which may leave some out

The plan that a load would make is marked. Nothing is loaded, and no worker is sent anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ollama_zmq.cluster.load_plan import LoadPlan, plan_load
from ollama_zmq.cluster.placement import Policy
from ollama_zmq.cluster.snapshot import ClusterSnapshot
from ollama_zmq.cluster.speeds import forecast, stage_cost, token_us
from ollama_zmq.cluster.stages import LoadOrder, Missing, Stage
from ollama_zmq.cluster.state import DryRun, PlannedStage, PlanState
from ollama_zmq.errors import OutOfDeviceMemory

ALONE = "this machine alone"
FASTEST = "fastest"


def dry_run(order: LoadOrder, snapshot: ClusterSnapshot) -> DryRun:
    """Every sensible plan of *order*."""
    chosen = _chosen(order, snapshot)
    if snapshot.missing and order.missing is not Missing.USE_REST:  # a load would not go on without them
        plans: tuple[PlanState, ...] = (PlanState(chosen, chosen=True, error="; ".join(snapshot.missing)),)
    else:
        choices = _choices(snapshot)
        plans = tuple(_plan(order, some, policy, name, chosen=name == chosen) for name, some, policy in choices)
    return DryRun(order.name, order.num_ctx, order.num_parallel, order.policy.value, plans, snapshot.missing)


def _choices(snapshot: ClusterSnapshot) -> Iterator[tuple[str, ClusterSnapshot, Policy]]:
    yield ALONE, snapshot.of(), Policy.THROUGHPUT
    for profile in snapshot.workers:
        yield profile.address, snapshot.of(profile.address), Policy.THROUGHPUT
    if len(snapshot.workers) > 1:
        yield _all(snapshot), snapshot, Policy.THROUGHPUT
    if snapshot.workers:
        yield FASTEST, snapshot, Policy.FASTEST


def _chosen(order: LoadOrder, snapshot: ClusterSnapshot) -> str:
    if order.policy is Policy.FASTEST and snapshot.workers:
        return FASTEST
    return _all(snapshot) if len(snapshot.workers) > 1 else snapshot.workers[0].address if snapshot.workers else ALONE


def _all(snapshot: ClusterSnapshot) -> str:
    return f"all {len(snapshot.workers)} workers"


def _plan(order: LoadOrder, snapshot: ClusterSnapshot, policy: Policy, name: str, *, chosen: bool) -> PlanState:
    try:
        plan = plan_load(replace(order, policy=policy), snapshot)
    except OutOfDeviceMemory as error:
        return PlanState(name, chosen, str(error))
    costs = [stage_cost(stage, snapshot.profile(stage.address), order.network.hidden_size) for stage in plan.stages]
    return PlanState(
        name,
        chosen,
        stages=tuple(_stage(plan, stage, token_us(cost)) for stage, cost in zip(plan.stages, costs, strict=True)),
        predicted=forecast(costs, order.max_tokens),
        unloads=tuple(snapshot.names[model] for model in sorted(plan.evicted)),
        notes=plan.placement.notes,  # the comparison with this machine alone is what the table of plans shows itself
    )


def _stage(plan: LoadPlan, stage: Stage, predicted_us: float) -> PlannedStage:
    plain, demand = stage.state, plan.demand
    return PlannedStage(
        plain.worker,
        plain.part,
        plain.first_layer,
        plain.last_layer,
        weight_bytes=sum(source.nbytes for source in stage.define.sources),
        kv_bytes=demand.kv_nbytes * len(stage.layers),
        scratch_bytes=demand.scratch_nbytes if stage.layers else 0,
        need_bytes=stage.need,
        predicted_us=predicted_us,
    )

"""A load as it would be now: which models go, where its layers go, how many contexts fit, and the stages of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ollama_zmq.cluster.contexts import with_contexts
from ollama_zmq.cluster.placement import Demand, Placement, Policy
from ollama_zmq.cluster.room import room_for
from ollama_zmq.cluster.stages import LoadOrder, Stage, demand_of, stages_of
from ollama_zmq.cluster.survey import Survey


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where a model goes.

    Attributes:
        order: with the contexts that fit; demand: of the model with so many.
        gone: the models that must be unloaded before.
    """

    order: LoadOrder
    demand: Demand
    placement: Placement
    stages: tuple[Stage, ...]
    gone: frozenset[int]


def plan_load(order: LoadOrder, survey: Survey, policy: Policy, idle: Sequence[int], busy: Sequence[int]) -> LoadPlan:
    """The plan of *order* beside the other models of *survey*, of which *idle* and *busy* may go.

    Raises:
        OutOfDeviceMemory: it does not fit.
    """
    order = replace(order, contexts=1)
    demand, replaced = demand_of(order), {order.replaces}
    placement, gone = room_for(lambda gone: survey.plan(demand, policy, gone | replaced), idle, busy)
    free = gone | replaced
    order = with_contexts(order, placement, lambda roomy: survey.plan(demand_of(roomy), policy, free))
    demand = demand_of(order)
    return LoadPlan(order, demand, placement, stages_of(order, demand, placement), gone)

"""Eviction: which models must be unloaded so that another one fits, and fits well. Nothing is unloaded here.

Idle models are evicted least recently used first, as many as cost least:

    cost of a plan = seconds of ``HORIZON_TOKENS`` tokens + seconds to load again what is evicted for it

So a model goes for a plan that is much faster, or because nothing fits beside it; two models that are asked for in turn
and fit beside each other both stay. When nothing fits yet, models in use go, too, for which somebody has to wait.

Of the models found so, those that turn out not to be in the way stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ollama_zmq.cluster.placement import Placement
from ollama_zmq.errors import OutOfDeviceMemory

HORIZON_TOKENS = 500  # of a conversation, until another model may be asked for

Planner = Callable[[frozenset[int]], Placement]


def plan_evictions(
    plan: Planner, idle: Sequence[int], busy: Sequence[int], reload_s: Callable[[int], float]
) -> tuple[Placement, frozenset[int]]:
    """Return the plan to take, and the models that must be evicted for it.

    Args:
        plan: the plan when some models are evicted; raises OutOfDeviceMemory.
        idle: models that nobody uses, busy: those in use; both least recently used first.
        reload_s: seconds to load a model again.

    Raises:
        OutOfDeviceMemory: it would not fit if all of them were evicted.
    """
    plan(frozenset((*idle, *busy)))  # raises when it fits nowhere
    found: tuple[float, Placement, frozenset[int]] | None = None
    for n in range(len(idle) + len(busy) + 1):
        if n > len(idle) and found is not None:
            break
        evicted = frozenset((*idle, *busy)[:n])
        placement = _try(plan, evicted)
        if placement is not None:
            cost_s = HORIZON_TOKENS * placement.token_s + sum(map(reload_s, evicted))
            if found is None or cost_s < found[0]:
                found = cost_s, placement, evicted
    assert found is not None  # with all of them evicted it fits
    return _keep_unneeded(plan, (*busy[::-1], *idle[::-1]), *found[1:])


def _keep_unneeded(
    plan: Planner, newest_first: Sequence[int], placement: Placement, evicted: frozenset[int]
) -> tuple[Placement, frozenset[int]]:
    for model in newest_first:
        other = _try(plan, evicted - {model}) if model in evicted else None
        if other is not None and other.token_s <= placement.token_s:
            placement, evicted = other, evicted - {model}
    return placement, evicted


def _try(plan: Planner, evicted: frozenset[int]) -> Placement | None:
    try:
        return plan(evicted)
    except OutOfDeviceMemory:
        return None

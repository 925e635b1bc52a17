"""Eviction: which models must be unloaded so that another one fits, and fits well. Nothing is unloaded here.

A plan is as good as any when it is at most a twentieth slower than with every worker's memory to itself. In order:

    1. beside all others, when that plan is as good as any
    2. without some idle models, the least recently used first, when that plan is as good as any
    3. the fastest plan that fits beside those that are in use
    4. nothing fits yet: also without models in use, for which somebody has to wait

Of the models found so, those that turn out not to be in the way stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ollama_zmq.cluster.placement import Placement
from ollama_zmq.errors import OutOfDeviceMemory

WORSE = 1.05

Planner = Callable[[frozenset[int]], Placement]


def plan_evictions(plan: Planner, idle: Sequence[int], busy: Sequence[int]) -> tuple[Placement, frozenset[int]]:
    """Return the plan to take, and the models that must be evicted for it.

    Args:
        plan: the plan when some models are evicted; raises OutOfDeviceMemory.
        idle: models that nobody uses, busy: those in use; both least recently used first.

    Raises:
        OutOfDeviceMemory: it would not fit if all of them were evicted.
    """
    enough_s = plan(frozenset((*idle, *busy))).token_s * WORSE
    found: tuple[Placement, frozenset[int]] | None = None
    for n in range(len(idle) + len(busy) + 1):
        if n > len(idle) and found is not None:
            break
        evicted = frozenset((*idle, *busy)[:n])
        placement = _try(plan, evicted)
        if placement is not None and (found is None or placement.token_s < found[0].token_s):
            found = placement, evicted
            if placement.token_s <= enough_s:
                break
    assert found is not None  # with all of them evicted it fits
    return _keep_unneeded(plan, (*busy[::-1], *idle[::-1]), *found)


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

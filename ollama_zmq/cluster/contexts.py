"""How many contexts' worth of KV pages a model gets.

``num_parallel`` of them when that was asked for. Otherwise ``CONTEXTS``, or as many as leave the plan what it is with
one: no layer moves to a slower place, and no model fails to load or has to go, for the sake of requests that may never
come. How many sequences run at once is then up to their lengths: admission goes by pages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ollama_zmq.cluster.placement import Placement
from ollama_zmq.cluster.stages import LoadOrder
from ollama_zmq.errors import OutOfDeviceMemory

CONTEXTS = 4


def with_contexts(order: LoadOrder, placement: Placement, plan: Callable[[LoadOrder], Placement]) -> LoadOrder:
    """Return *order*, which is planned as *placement* with one context, with as many as fit into that *plan*."""
    for contexts in range(CONTEXTS, 1, -1) if not order.num_parallel else ():
        roomy = replace(order, contexts=contexts)
        try:
            if plan(roomy).stages == placement.stages:
                return roomy
        except OutOfDeviceMemory:
            continue
    return order

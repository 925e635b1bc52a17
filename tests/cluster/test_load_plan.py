from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_zmq.cluster import load_plan
from ollama_zmq.cluster.cost_model import WorkerProfile
from ollama_zmq.cluster.load_plan import CONTEXTS, with_contexts
from ollama_zmq.cluster.placement import Demand, Placement, place
from ollama_zmq.cluster.stages import LOCAL, LoadOrder, demand_of
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network
from ollama_zmq.ops.state import PAGE_SLOTS

A = "a:50052"


@pytest.fixture(scope="module")
def order(tiny_gguf: Path) -> Iterator[LoadOrder]:
    with open_gguf(tiny_gguf) as gguf:
        yield LoadOrder(1, "tiny", Network(gguf), "sha256-00", (A,), 2048, 0, 16)


def chosen(order: LoadOrder, room_for: int) -> LoadOrder:
    """The order with the contexts it gets from a worker that holds every layer with the pages of so many contexts."""
    demand = demand_of(order)
    n_layers = len(demand.layer_nbytes)
    budget = demand.need(range(n_layers)) + (room_for - 1) * n_layers * demand.kv_nbytes

    def plan(roomy: Demand) -> Placement:
        return place(roomy, [WorkerProfile(A, budget, 1e10, 1e11)], WorkerProfile(LOCAL, 1 << 40, 1e10, 1e11))

    return with_contexts(order, demand, plan(demand), plan)


@pytest.mark.parametrize("contexts", range(1, CONTEXTS + 3))
def test_there_are_pages_for_as_many_contexts_as_fit_and_four_at_most(order, contexts):
    assert chosen(order, contexts).kv_pages == 2048 // PAGE_SLOTS * min(contexts, CONTEXTS)


def test_a_model_is_looked_at_once_however_many_contexts_are_tried(order, monkeypatch):
    looked = []
    monkeypatch.setattr(load_plan, "demand_of", lambda order: looked.append(order) or demand_of(order))
    local = WorkerProfile(LOCAL, 1 << 40, 1e10, 1e11)
    plan = load_plan.plan_load(order, load_plan.ClusterSnapshot((), local, {}, {}))
    assert len(looked) == 1
    assert (plan.order.contexts, plan.demand) == (CONTEXTS, demand_of(plan.order))


def test_how_many_sequences_run_is_up_to_the_pages_unless_it_was_asked_for(order):
    assert (order.max_sequences, order.max_rows) == (16, 16)
    asked = LoadOrder(1, "tiny", order.network, "sha256-00", (A,), 2048, 3, 16)
    found = chosen(asked, 1)
    assert (found.max_sequences, found.kv_pages) == (3, 3 * 2048 // PAGE_SLOTS)

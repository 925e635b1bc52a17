"""What a dry run tells, from what is known of the workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ollama_zmq.cluster.cost_model import CACHE_SHARE, STEP_S, WorkerProfile
from ollama_zmq.cluster.dry_run import ALONE, FASTEST, dry_run
from ollama_zmq.cluster.placement import Policy
from ollama_zmq.cluster.snapshot import ClusterSnapshot
from ollama_zmq.cluster.stages import LOCAL, LoadOrder, demand_of
from ollama_zmq.cluster.state import PlanState
from ollama_zmq.engine.pacing import SAMPLING
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.network import Network

A, B = "a:50052", "b:50052"
GB = 10**9


@pytest.fixture(scope="module")
def order(tiny_gguf: Path) -> Iterator[LoadOrder]:
    with open_gguf(tiny_gguf) as gguf:
        yield LoadOrder(0, "tiny", Network(gguf), "", (A, B), num_ctx=128, num_parallel=1, max_tokens=64)


def profile(
    address: str, budget: int = GB, decode: float = 1e9, prefill: float = 1e10, rtt_s: float = 1e-4
) -> WorkerProfile:
    remote = address != LOCAL
    return WorkerProfile(address, budget, decode, prefill, rtt_s if remote else 0.0, 1e8 if remote else 0.0)


def snapshot(*workers: WorkerProfile, local: WorkerProfile | None = None, **fields: object) -> ClusterSnapshot:
    return ClusterSnapshot(workers, local or profile(LOCAL), **{"held": {}, "names": {}} | fields)  # type: ignore[arg-type]


def plans(order: LoadOrder, found: ClusterSnapshot) -> dict[str, PlanState]:
    return {plan.name: plan for plan in dry_run(order, found).plans}


def test_every_sensible_choice_is_planned_and_the_one_of_a_load_is_marked(order):
    found = plans(order, snapshot(profile(A), profile(B)))
    assert list(found) == [ALONE, A, B, "all 2 workers", FASTEST]
    assert [name for name, plan in found.items() if plan.chosen] == ["all 2 workers"]
    assert [[s.worker for s in plan.stages] for plan in found.values()][:4] == [
        [LOCAL],
        [A, LOCAL],
        [B, LOCAL],
        [A, B, LOCAL],
    ]


def test_without_workers_there_is_one_plan(order):
    assert [(plan.name, plan.chosen) for plan in dry_run(order, snapshot()).plans] == [(ALONE, True)]


def test_bytes_are_those_of_the_file_and_of_the_cache(order):
    network = order.network
    layers, head = plans(order, snapshot(profile(A)))[A].stages
    assert layers.weight_bytes == sum(network.layer_nbytes(i) for i in range(network.n_layers))
    assert layers.kv_bytes == network.kv_nbytes(128) * network.n_layers
    assert head.weight_bytes == network.gguf.tensors[network.output.name].nbytes + 4 * network.hidden_size
    assert layers.need_bytes >= layers.weight_bytes + layers.kv_bytes + layers.scratch_bytes


def test_decode_waits_for_every_byte_and_every_way(order):
    """One token reads all weights once, and half a context of keys and values, and goes there and back."""
    stage, head = plans(order, snapshot(profile(A, decode=2e9)))[A].stages
    way_s = STEP_S + 1e-4 + 8 * order.network.hidden_size / 1e8
    token_s = (stage.weight_bytes + stage.kv_bytes / 2 / CACHE_SHARE) / 2e9 + way_s
    assert stage.predicted_us == pytest.approx(token_s * 1e6, rel=0.02)
    predicted = plans(order, snapshot(profile(A, decode=2e9)))[A].predicted
    assert 1 / predicted.decode_tokens_per_s == pytest.approx(
        (stage.predicted_us + head.predicted_us) / 1e6 + SAMPLING.seconds(1)
    )


def test_two_equal_workers_are_predicted_to_prefill_up_to_twice_as_fast(order):
    slow = {"prefill": 1e7, "rtt_s": 1e-6}
    found = plans(order, snapshot(profile(A, **slow), profile(B, **slow)))
    gain = found["all 2 workers"].predicted.prefill_tokens_per_s / found[A].predicted.prefill_tokens_per_s
    assert 1.6 < gain < 2.0


def test_fastest_leaves_a_far_worker_out(order):
    found = plans(order, snapshot(profile(A, rtt_s=0.5)))
    assert [stage.worker for stage in found[FASTEST].stages] == [LOCAL]
    assert found[FASTEST].predicted == found[ALONE].predicted
    assert found[A].predicted.decode_tokens_per_s < 2


def test_a_plan_that_does_not_fit_says_why_and_the_others_stand(order):
    found = plans(order, snapshot(profile(A, budget=1000), local=profile(LOCAL, budget=1000)))
    assert found[ALONE].error.endswith("add a worker")
    assert found[ALONE].stages == ()


def test_a_plan_that_needs_the_memory_of_others_names_them(order):
    need = sum(stage.need_bytes for stage in plans(order, snapshot())[ALONE].stages)
    full = snapshot(
        local=profile(LOCAL, budget=need), held={3: {LOCAL: need // 2}, 4: {A: 1}}, names={3: "big", 4: "far"}
    )
    assert plans(replace(order, idle=(3, 4)), full)[ALONE].unloads == ("big",)


@pytest.mark.parametrize(
    ("idle", "busy", "unloads"),
    [((3, 4), (), ("a",)), ((4, 3), (), ("b",)), ((3,), (4,), ("a",)), ((4,), (3,), ("b",)), ((), (4, 3), ("b",))],
)
def test_what_would_go_is_what_a_load_would_ask_to_go(order, idle, busy, unloads):
    """Of two models, either of which is in the way: the least recently used, and an idle one before a busy one."""
    need = sum(stage.need_bytes for stage in plans(order, snapshot())[ALONE].stages)
    half = need // 2
    full = snapshot(
        local=profile(LOCAL, budget=need + half), held={3: {LOCAL: half}, 4: {LOCAL: half}}, names={3: "a", 4: "b"}
    )
    assert plans(replace(order, idle=idle, busy=busy), full)[ALONE].unloads == unloads


def test_a_model_that_nobody_may_ask_to_go_is_in_the_way(order):
    """One that is being loaded, for instance."""
    need = sum(stage.need_bytes for stage in plans(order, snapshot())[ALONE].stages)
    full = snapshot(local=profile(LOCAL, budget=need), held={3: {LOCAL: need // 2}}, names={3: "a"})
    assert plans(replace(order, idle=(7,)), full)[ALONE].error.endswith("add a worker")


def test_the_table_of_plans_leaves_out_the_comparison_with_one_of_its_rows_and_no_other_note(order):
    need = plans(order, snapshot(profile(A)))[A].stages[0].need_bytes
    slow = profile(A, budget=need - 1, decode=1e8, rtt_s=0.05)
    assert snapshot(slow).plan(demand_of(order), Policy.THROUGHPUT).comparison.startswith("this machine alone is ")
    note = "the workers' memory does not hold every layer: the rest runs on this machine"
    assert plans(order, snapshot(slow))[A].notes == (note,)


def test_the_policy_of_the_server_decides_which_plan_is_marked(order):

    fastest = replace(order, policy=Policy.FASTEST)
    assert [name for name, plan in plans(fastest, snapshot(profile(A))).items() if plan.chosen] == [FASTEST]


def test_the_planner_and_the_cost_model_predict_the_same(order):
    """Placement chooses by the seconds that the engine's model then expects of one row."""
    found = snapshot(profile(A, decode=3e9), profile(B, prefill=2e9), local=profile(LOCAL, decode=2e9))
    placement = found.plan(demand_of(order), Policy.THROUGHPUT)
    predicted = plans(order, found)["all 2 workers"].predicted
    assert 1 / predicted.decode_tokens_per_s == pytest.approx(placement.token_s, rel=0.01)

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, combinations_with_replacement, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_zmq.cluster.cost_model import CostEstimate, WorkerProfile
from ollama_zmq.cluster.placement import CostTable, Demand, Policy, largest_context, place
from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.ops.state import PAGE_SLOTS

LOCAL = WorkerProfile("local", 10**12, 1e10)


def demand(n_layers: int, nbytes: int = 100, kv: int = 0) -> Demand:
    return Demand((nbytes,) * n_layers, kv, 0, 0)


def reading(nbytes: float) -> CostEstimate:
    return CostEstimate({0: (nbytes, 0.0)})


def worker(address: str, speed: float = 1e10, budget: int = 10**12, rtt_s: float = 1e-4) -> WorkerProfile:
    return WorkerProfile(address, budget, speed, rtt_s=rtt_s)


def cut(placement) -> list[tuple[str, int]]:
    return [(address, len(layers)) for address, layers in placement.stages]


def test_equal_workers_share_equally():
    assert cut(place(demand(30), [worker("a"), worker("b")], LOCAL)) == [("a", 15), ("b", 15)]


def test_layers_follow_the_measured_speed():
    big = demand(40, 10**9)
    assert cut(place(big, [worker("fast", 3e10), worker("slow", 1e10)], LOCAL)) == [("fast", 30), ("slow", 10)]


def test_every_named_worker_is_used():
    placement = place(demand(8, 10**9), [worker("a", 1e12), worker("b", 1e12), worker("slow", 1e9)], LOCAL)
    assert [address for address, _ in cut(placement)] == ["a", "b", "slow"]


def test_more_workers_than_layers_leaves_the_last_ones_out():
    placement = place(demand(1), [worker("a"), worker("b")], LOCAL)
    assert cut(placement) == [("a", 1)]
    assert "not used: b" in placement.notes


def test_a_budget_is_never_exceeded_and_the_rest_runs_here():
    placement = place(demand(10, 10**9), [worker("small", budget=35 * 10**8)], LOCAL)
    assert cut(placement) == [("small", 3), ("local", 7)]
    assert any("the rest runs on this machine" in note for note in placement.notes)


def test_the_kv_cache_counts():
    assert cut(place(demand(10, 10**9, kv=10**9), [worker("small", budget=64 * 10**8)], LOCAL))[0] == ("small", 3)


def test_a_slower_plan_is_said_to_be_slower():
    placement = place(demand(10, 10**6), [worker("far", rtt_s=0.05)], LOCAL)
    assert placement.notes == ()
    assert placement.all_notes == (placement.comparison,)
    assert placement.comparison.startswith("this machine alone is predicted to decode at ")


def test_fastest_leaves_out_a_worker_that_slows_down():
    placement = place(demand(10, 10**6), [worker("far", rtt_s=0.05)], LOCAL, Policy.FASTEST)
    assert cut(placement) == [("local", 10)]


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    speeds=st.lists(st.integers(1, 9), min_size=1, max_size=2),
    here=st.integers(1, 9),
)
@example(sizes=[30], speeds=[2], here=1)  # the worker is faster, but not by as much as the way back to the head takes
def test_no_cut_is_faster_than_fastest(sizes, speeds, here):
    """Of every cut over every choice of workers, with the way to the local head that only some of them have."""
    model = Demand(tuple(size * 500_000 for size in sizes), 0, 0, 0)
    profiles = [worker(f"w{i}", 1e10 * speed) for i, speed in enumerate(speeds)]
    local = WorkerProfile("local", 10**12, 1e10 * here)
    table, n = CostTable(model, [*profiles, local]), len(sizes)
    cuts = ((0, *inner, n) for inner in combinations_with_replacement(range(n + 1), len(profiles)))
    plans = [[(j, range(*ends)) for j, ends in enumerate(pairwise(ends)) if ends[0] < ends[1]] for ends in cuts]
    found = place(model, profiles, local, Policy.FASTEST)
    assert found.token_s == pytest.approx(min(map(table.token_s, plans)))


@given(
    sizes=st.lists(st.integers(1, 50), min_size=2, max_size=7),
    speeds=st.lists(st.integers(1, 9), min_size=2, max_size=3),
)
def test_no_cut_has_a_faster_slowest_stage(sizes, speeds):
    profiles = [worker(f"w{i}", 1e9 * speed, rtt_s=0.0) for i, speed in enumerate(speeds)]
    used = profiles[: len(sizes)]
    placement = place(Demand(tuple(sizes), 0, 0, 0), profiles, LOCAL)
    by_address = {profile.address: profile for profile in profiles}
    found = max(
        sum(sizes[r.start : r.stop]) / by_address[address].decode_bytes_per_s for address, r in placement.stages
    )
    best = min(
        max(
            sum(sizes[a:b]) / profile.decode_bytes_per_s
            for profile, a, b in zip(used, (0, *cuts), (*cuts, len(sizes)), strict=True)
        )
        for cuts in combinations(range(1, len(sizes)), len(used) - 1)
    )
    assert found == pytest.approx(best)


def test_a_longer_way_takes_no_layers_from_a_worker():
    """It keeps nobody busy: microbatches follow each other on it."""
    assert cut(place(demand(6, 10**6), [worker("near"), worker("far", rtt_s=0.05)], LOCAL)) == [("near", 3), ("far", 3)]


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=9), n=st.integers(0, 3))
def test_every_layer_is_placed_once_and_in_order(sizes, n):
    placement = place(Demand(tuple(sizes), 0, 0, 0), [worker(f"w{i}") for i in range(n)], LOCAL)
    assert [i for _, layers in placement.stages for i in layers] == list(range(len(sizes)))


def test_experts_that_a_token_does_not_use_take_memory_and_no_time():
    model = Demand((100,) * 4, 0, 0, 0, layer_costs=tuple(reading(n) for n in (100, 25, 25, 25)))
    fast = place(model, [worker("a"), worker("b")], LOCAL)
    assert [len(layers) for _, layers in fast.stages] == [1, 3]
    small = place(model, [worker("a"), worker("b", budget=220)], LOCAL)
    assert [len(layers) for _, layers in small.stages] == [2, 2]


def test_a_plan_that_is_faster_than_this_machine_has_no_notes():
    assert place(demand(40, 10**9), [worker("a", 3e10), worker("b", 3e10)], LOCAL).all_notes == ()


def test_a_machine_without_workers_is_told_nothing_of_them():
    assert place(demand(4), [], LOCAL).all_notes == ()


def test_the_output_head_is_counted_where_it_runs():
    """The local device is slow and has the head: it gets the fewest layers, and both predictions count the head."""
    model = Demand((10**9,) * 9, 0, 0, 0, head_cost=reading(3 * 10**9))
    placement = place(model, [worker("a", budget=4 * 12 * 10**8, rtt_s=0.0)], LOCAL)
    assert cut(placement) == [("a", 4), ("local", 5)]
    assert (placement.token_s, placement.local_token_s) == pytest.approx((1.2, 1.2), rel=1e-3)


def test_layers_on_this_machine_take_turns_with_its_head():
    model = Demand((10**9,) * 6, 0, 0, 0, head_cost=reading(3 * 10**9))
    assert cut(place(model, [worker("a", budget=5 * 10**9, rtt_s=0.0)], LOCAL)) == [("a", 4), ("local", 2)]


@pytest.mark.parametrize(
    ("workers", "num_parallel", "error"),
    [
        ((), 0, "the model needs 440 B with the KV cache of num_ctx 0, and there is local 100 B: add a worker"),
        ((("a", 200),), 1, "num_ctx 0, and there is a 200 B, local 100 B: raise -m, or add a worker"),
        ((), 60, "of num_ctx 0 times 60, and there is local 100 B: lower OLLAMA_NUM_PARALLEL, or add a worker"),
    ],
)
def test_what_fits_nowhere_names_what_would_help(workers, num_parallel, error):
    asked = replace(demand(4, 100), num_parallel=num_parallel)
    with pytest.raises(OutOfDeviceMemory) as caught:
        place(asked, [worker(address, budget=budget) for address, budget in workers], WorkerProfile("local", 100, 1e10))
    assert str(caught.value).endswith(error)


def test_what_fits_nowhere_names_the_context_that_would():
    model = Demand((100,) * 4, kv_nbytes=6400, scratch_nbytes=0, head_nbytes=0, num_ctx=6400)
    with pytest.raises(OutOfDeviceMemory, match=r"num_ctx 6400, .*: num_ctx 1856 would fit") as caught:
        place(model, [worker("a", budget=2 * 110 + 2 * 1900)], WorkerProfile("local", 2 * 110 + 2 * 1900, 1e10))
    assert caught.value.facts["num_ctx"] == 1856


@given(
    budgets=st.lists(st.integers(0, 900), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=6),
)
def test_the_context_that_would_fit_is_the_largest_that_does(budgets, sizes):
    profiles = [WorkerProfile(f"w{i}", budget, 1e9) for i, budget in enumerate(budgets)]

    def of_pages(pages):
        return Demand(tuple(sizes), kv_nbytes=pages * 7, scratch_nbytes=5, head_nbytes=11, num_ctx=pages * PAGE_SLOTS)

    def fits(pages):
        try:
            return bool(place(of_pages(pages), profiles[:-1], profiles[-1]))
        except OutOfDeviceMemory:
            return False

    found = largest_context(of_pages(30), profiles) // PAGE_SLOTS
    assert found == max((pages for pages in range(1, 31) if fits(pages)), default=0)


@pytest.mark.parametrize("layers", [1, 5, 31])
def test_of_equal_workers_the_earlier_gets_more(layers):
    addresses = ("a", "b") if layers > 1 else ("a",)
    stages = cut(place(demand(layers), [worker("a"), worker("b")], LOCAL))
    assert stages == list(zip(addresses, (layers - layers // 2, layers // 2), strict=False))


@pytest.mark.parametrize("speed", [1e10, 3e10, 7e9])
def test_one_of_equal_workers_is_the_first_of_the_list(speed):
    """Whatever their times round to."""
    workers = [worker(address, speed) for address in ("a", "b", "c")]
    slow_here = WorkerProfile("local", 10**12, 1e6)
    assert cut(place(demand(30, 10**9), workers, slow_here, Policy.FASTEST)) == [("a", 30)]

"""The cost model against the best there is, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from ollama_zmq.engine.costs import Line
from ollama_zmq.engine.pacing import MAX_IN_FLIGHT, MAX_STEP_S, Pacing, StageCost
from tests.engine.fakes import generation
from tests.engine.stages import Simulation, gaps, stage, streams

SHAPES = {"cpu": (1.0, 1.0), "gpu": (4.0, 0.05), "1b": (7.5, 3.4)}  # f and k of a stage, in milliseconds


def pipeline(shape="cpu", n_stages=3, rtt_ms=0.0, overhead_ms=0.0):
    f, k = SHAPES[shape]
    layers = [stage(f"w{i}", f, k, rtt_ms, overhead_ms=overhead_ms) for i in range(n_stages)]
    return [*layers, stage("local", f / 4, k / 4, head=True)]


def throughput(stages, n, **how):
    """Tokens per second of *n* streams once they have settled."""
    simulation = Simulation(stages, **how)
    simulation.submit(*streams(n))
    simulation.run(until=1.0)
    return simulation.run(until=3.0)


@pytest.mark.parametrize("rtt_ms", [0.0, 2.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [2, 9])
def test_the_groups_found_are_as_good_as_the_best_and_never_worse_than_one(shape, n, rtt_ms):
    stages = pipeline(shape, rtt_ms=rtt_ms)
    every = [throughput(stages, n, max_in_flight=groups) for groups in range(1, n + 1)]
    for believed in (0.2, 5.0):
        found = throughput(stages, n, believed=believed)
        assert found >= 0.95 * max(every)
        assert found >= 0.99 * every[0]


@pytest.mark.parametrize("overhead_ms", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("broker", [(0.0, 0.0), (4.0, 0.1), (0.5, 1.0), (0.5, 5.0)])
def test_a_broker_and_workers_that_take_time_of_their_own_get_the_best_groups_too(broker, overhead_ms):
    own, stages = Line(broker[0] / 1e3, broker[1] / 1e3), pipeline(overhead_ms=overhead_ms)
    every = [throughput(stages, 9, max_in_flight=groups, broker=own) for groups in range(1, 10)]
    assert throughput(stages, 9, broker=own) >= 0.95 * max(every)


def test_groups_follow_what_the_stages_cost_today():
    simulation = Simulation(pipeline("cpu"))
    simulation.submit(*streams(9))
    simulation.run(until=5.0)
    before = simulation.engine.in_flight
    simulation.slowness[0] = 5.0
    simulation.run(until=8.0)
    assert (before, simulation.engine.in_flight) == (3, 2)


def prefill_s(stages, T=2048, **sizes):
    simulation = Simulation(stages, **sizes)
    simulation.submit(*streams(1, num_predict=1, prompt=T))
    simulation.run()
    simulation.submit(generation("again", prompt=range(256), num_predict=1))  # nothing is left over
    begun = simulation.now
    simulation.submit(generation("r", prompt=[7, *[8] * (T - 1)], num_predict=1, temperature=0.0))
    simulation.run()
    assert simulation.done[-1] == "r"
    return simulation.now - begun


@pytest.mark.parametrize("rtt_ms", [0.0, 2.0, 10.0])
def test_chunks_of_a_prompt_keep_three_workers_busy(rtt_ms):
    one = prefill_s([stage("w", 3.0, 3.0), stage("local", 1, 1, head=True)])
    assert one / prefill_s(pipeline("cpu", 3, rtt_ms)) >= 2.6


def test_no_chunk_takes_a_stage_longer_than_half_a_second():
    pacing = Pacing([stage("w", 10.0, 5.0)], max_tokens=512)
    chunk = pacing.plan(0, 4096).chunk
    assert 0.6 * MAX_STEP_S < 0.01 + 0.005 * chunk <= MAX_STEP_S


def test_slow_stages_still_get_chunks_that_are_worth_it():
    assert Pacing([stage("w", 900.0, 100.0)], max_tokens=512).plan(0, 4096).chunk > 8


@pytest.mark.parametrize("rtt_ms", [0.0, 10.0])
@pytest.mark.parametrize("n_stages", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 4])
def test_a_foreign_prompt_slows_running_streams_by_less_than_two_and_a_half(shape, n_stages, rtt_ms, n):
    simulation = Simulation(pipeline(shape, n_stages, rtt_ms))
    simulation.submit(*streams(n))
    simulation.run(until=3.0)
    usual = median(gap for i in range(n) for gap in gaps(simulation.said[f"s{i}"], since=1.0))
    simulation.submit(generation("foreign", prompt=[9] * 4096, num_predict=1))
    while "foreign" not in simulation.done:
        simulation.run(until=simulation.now + 1.0)
    during = sorted(gap for i in range(n) for gap in gaps(simulation.said[f"s{i}"], since=3.0, until=simulation.now))
    assert during[int(0.95 * len(during))] <= 2.5 * usual
    assert simulation.now < 3.0 + 4096 * (usual + 0.01)  # and it is more than a token a step


def test_the_local_head_and_local_layers_wait_for_each_other():
    apart = Pacing([stage("w", 1.0, 1.0), stage("local", 1.0, 1.0, head=True)], max_tokens=512)
    together = Pacing([stage("local", 1.0, 1.0), stage("local", 1.0, 1.0, head=True)], max_tokens=512)
    assert apart.plan(8, 0).groups > together.plan(8, 0).groups == 1


def test_workers_that_share_this_machine_s_cores_get_no_more_groups_than_there_are_cores():
    def on_two_cores(share):
        costs = [stage(place, 6.0, 2.0, head=place == "local") for place in ("w0", "w1", "local")]
        return Pacing([replace(cost, share=share) for cost in costs], max_tokens=512)

    assert on_two_cores(0.0).plan(9, 0).groups == 3
    assert on_two_cores(0.5).plan(9, 0).groups == 2
    assert on_two_cores(1.0).plan(9, 0).groups == 1


def test_a_far_away_pipeline_is_filled_but_not_without_bound():
    pacing = Pacing(pipeline("cpu", 3, rtt_ms=20_000.0), max_tokens=512)
    assert pacing.plan(0, 100_000).depth == MAX_IN_FLIGHT
    assert pacing.plan(64, 0).groups <= MAX_IN_FLIGHT


def test_streams_get_the_same_share():
    simulation = Simulation(pipeline("cpu"))
    simulation.submit(*streams(7))
    simulation.run(until=2.0)
    simulation.submit(generation("long", prompt=[9] * 2000, num_predict=1))
    simulation.run(until=6.0)
    counts = [len(simulation.said[f"s{i}"]) for i in range(7)]
    assert max(counts) - min(counts) <= 2


def test_a_short_prompt_does_not_wait_for_a_long_one():
    simulation = Simulation(pipeline("cpu"))
    simulation.submit(generation("long", prompt=[9] * 4000, num_predict=1), generation("short", num_predict=1))
    simulation.run()
    assert simulation.done == ["short", "long"]


def test_many_prompts_may_stretch_a_round_to_what_it_will_be_when_they_decode():
    pacing = Pacing([StageCost("w", Line(0.01, 0.001), Line(0.0, 0.0))], max_tokens=512)
    one, many = pacing.plan(2, 9999, 1), pacing.plan(2, 9999, 60)
    assert pacing.loop_s(2 + one.chunk, 2) <= 2 * pacing.round_s(2, 1)
    assert pacing.loop_s(2 + many.chunk, 2) <= pacing.round_s(62, 1)
    assert (one.chunk, many.chunk) == (12, 48)

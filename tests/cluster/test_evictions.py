"""Which models go so that another one fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ollama_zmq.cluster.evictions import HORIZON_TOKENS, plan_evictions
from ollama_zmq.cluster.placement import Placement
from ollama_zmq.errors import OutOfDeviceMemory


def memory(total: int, held: dict[int, int], *, need: int, well: int | None = None) -> Callable[..., Placement]:
    """Plans of a model that fits in *need* bytes, and twice as fast in *well*."""

    def plan(evicted: frozenset[int]) -> Placement:
        free = total - sum(nbytes for model, nbytes in held.items() if model not in evicted)
        if free < need:
            raise OutOfDeviceMemory(f"{need} of {free}")
        return Placement((("a", range(1)),), 1.0 if free >= (well or need) else 2.0, 9.0)

    return plan


def evicted(plan: Callable[..., Placement], idle: list[int], busy: list[int], reload_s: float = 1.0) -> set[int]:
    return set(plan_evictions(plan, idle, busy, lambda model: reload_s)[1])


def test_nobody_goes_while_there_is_room():
    assert evicted(memory(10, {1: 3, 2: 3}, need=4), [1, 2], []) == set()


def test_the_least_recently_used_idle_model_goes_first():
    assert evicted(memory(10, {1: 4, 2: 4}, need=4), [2, 1], []) == {2}


def test_as_many_go_as_are_needed():
    assert evicted(memory(10, {1: 3, 2: 3, 3: 3}, need=7), [1, 2, 3], []) == {1, 2}


def test_a_model_that_is_not_in_the_way_stays():
    assert evicted(memory(10, {1: 1, 2: 8}, need=6), [1, 2], []) == {2}


def test_a_model_in_use_is_named_only_when_idle_ones_do_not_do():
    assert evicted(memory(10, {1: 4, 2: 4}, need=6), [2], [1]) == {2}
    assert evicted(memory(10, {1: 6, 2: 2}, need=6), [2], [1]) == {1}


def test_an_idle_model_goes_when_the_plan_gets_faster_without_it():
    assert evicted(memory(10, {1: 4}, need=4, well=8), [1], []) == {1}


def test_nobody_waits_for_a_model_in_use_to_get_a_faster_plan():
    assert evicted(memory(10, {1: 4}, need=4, well=8), [], [1]) == set()
    assert evicted(memory(10, {1: 4, 2: 1}, need=4, well=8), [2], [1]) == set()


def test_what_would_not_fit_alone_lets_nobody_go():
    with pytest.raises(OutOfDeviceMemory, match="11 of 10"):
        plan_evictions(memory(10, {1: 3}, need=11), [1], [], lambda model: 1.0)


def test_a_faster_plan_is_worth_an_eviction_only_when_it_saves_more_than_the_reload_takes():
    """A token takes 2 s beside the other model and 1 s without it."""
    plan = memory(10, {1: 4}, need=4, well=8)
    assert evicted(plan, [1], [], reload_s=HORIZON_TOKENS * 0.99) == {1}
    assert evicted(plan, [1], [], reload_s=HORIZON_TOKENS * 1.01) == set()


def test_two_models_that_are_asked_for_in_turn_and_fit_beside_each_other_both_stay():
    """On the worker alone each is 6 % faster; beside the other it has room on this machine."""

    def plan(gone: frozenset[int]) -> Placement:
        return Placement((("a", range(1)),), 0.010 if gone else 0.0106, 9.0)

    assert evicted(plan, [1], [], reload_s=3.5) == set()

"""Each filter against its definition in float64, written out token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.engine import filters

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.01, 0.99)


def candidates(seed, n=40):
    logits = np.sort(np.random.default_rng(seed).normal(0, 3, n))[::-1]
    return np.arange(n)[::-1].copy(), logits


def probabilities(logits):
    weights = [math.exp(x - max(logits)) for x in logits]
    return [w / sum(weights) for w in weights]


def plain_largest(logits, k):
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    return order[:k] if k > 0 else order


def prefix_reaching(shares_in_order, p, *, strictly):
    total = 0.0
    for n, share in enumerate(shares_in_order, 1):
        total += share
        if total > p or (total == p and not strictly):
            return n
    return len(shares_in_order)


@pytest.mark.parametrize("V", [1, 5, 1023, 2047, 2048, 2049, 5000, 50_001])
@pytest.mark.parametrize("k", [-1, 0, 1, 2, 40, 600, 60_000])
@pytest.mark.parametrize("values", [3, 2000, 10**9])
def test_largest_are_the_first_of_a_full_sort(V, k, values):  # few distinct values: many ties
    logits = (np.random.default_rng(V * 7 + values).integers(0, values, V) / values).astype(np.float32)
    ids, found = filters.largest(logits, k)
    assert ids.tolist() == plain_largest(logits.tolist(), k)
    assert found.tolist() == logits[ids].tolist()
    assert found.dtype == np.float64


def test_largest_of_logits_that_are_all_equal_or_minus_infinity():
    assert filters.largest(np.zeros(50_000, np.float32), 3)[0].tolist() == [0, 1, 2]
    logits = np.full(50_000, -np.inf, np.float32)
    logits[49_999] = 1
    assert filters.largest(logits, 3)[0].tolist() == [49_999, 0, 1]


@given(seed=seeds, p=shares)
def test_top_p_keeps_the_shortest_prefix_that_reaches_p(seed, p):
    ids, logits = candidates(seed)
    n = prefix_reaching(probabilities(logits), p, strictly=False)
    assert filters.keep_top_p(ids, logits, p)[0].tolist() == ids[:n].tolist()


@given(seed=seeds, p=shares)
def test_min_p_keeps_those_at_least_p_times_as_likely_as_the_best(seed, p):
    ids, logits = candidates(seed)
    share = probabilities(logits)
    assert filters.keep_min_p(ids, logits, p)[0].tolist() == [
        i for i, s in zip(ids, share, strict=True) if s >= p * share[0]
    ]


@given(seed=seeds, p=shares)
def test_typical_p_keeps_those_whose_surprise_is_nearest_to_the_entropy(seed, p):
    ids, logits = candidates(seed)
    share = probabilities(logits)
    entropy = -sum(s * math.log(s) for s in share)
    order = sorted(range(len(share)), key=lambda i: abs(-math.log(share[i]) - entropy))
    n = prefix_reaching([share[i] for i in order], p, strictly=True)
    assert filters.keep_typical(ids, logits, p)[0].tolist() == ids[sorted(order[:n])].tolist()


@pytest.mark.parametrize("keep", [filters.keep_top_p, filters.keep_typical])
def test_a_share_of_one_keeps_all_and_of_zero_keeps_one(keep):
    ids, logits = candidates(1)
    assert len(keep(ids, logits, 1.0)[0]) == 40
    assert len(keep(ids, logits, 0.0)[0]) == 1


def test_a_share_that_is_just_reached_is_enough_for_top_p_and_not_for_typical_p():
    ids, logits = np.arange(4), np.zeros(4)
    assert len(filters.keep_top_p(ids, logits, 0.5)[0]) == 2
    assert len(filters.keep_typical(ids, logits, 0.5)[0]) == 3


def test_min_p_of_zero_keeps_all_and_above_one_keeps_the_best():
    ids, logits = candidates(1)
    assert len(filters.keep_min_p(ids, logits, 0.0)[0]) == 40
    assert filters.keep_min_p(ids, logits, 2.0)[0].tolist() == ids[:1].tolist()


def test_tokens_of_no_probability_pass_through_every_filter():
    ids, logits = np.arange(3), np.array([1.0, 0.0, -np.inf])
    assert filters.keep_typical(ids, logits, 0.99)[0].tolist() == [0, 1]
    assert filters.keep_top_p(ids, logits, 0.99)[0].tolist() == [0, 1]
    assert filters.keep_min_p(ids, logits, 0.01)[0].tolist() == [0, 1]


@given(seed=seeds, temperature=st.floats(0.05, 5), u=st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_distribution(seed, temperature, u):
    ids, logits = candidates(seed)
    share = probabilities(logits / temperature)
    below = np.concatenate(([0.0], np.cumsum(share)))
    n = ids.tolist().index(filters.draw(ids, logits, temperature, u))
    assert below[n] - 1e-12 <= u <= below[n + 1] + 1e-12


def test_each_token_has_the_interval_that_begins_with_the_shares_before_it():
    assert [filters.draw(np.arange(2), np.zeros(2), 1.0, u) for u in (0.0, 0.499, 0.5, 0.999)] == [0, 0, 1, 1]


@given(weights=st.lists(st.floats(0.1, 1), min_size=1, max_size=50))
def test_the_largest_u_draws_the_last_that_has_weight(weights):
    logits = np.array([*np.log(sorted(weights, reverse=True)), -np.inf])
    assert filters.draw(np.arange(len(logits)), logits, 1.0, 1 - 2.0**-53) == len(weights) - 1


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e30])
def test_draw_survives_extreme_temperatures_and_never_takes_the_impossible(temperature):
    ids, logits = np.arange(3), np.array([5.0, 4.0, -np.inf])
    assert filters.draw(ids, logits, temperature, 0.0) == 0
    assert filters.draw(ids, logits, temperature, 1 - 2.0**-53) == (1 if temperature > 1 else 0)

"""The arithmetic behind the figures."""

from __future__ import annotations

import math

import common
import numpy as np
import perplexity
import pytest
from bench_generate import summary
from hypothesis import given
from hypothesis import strategies as st
from logits import parse_ids

from ollama_zmq.errors import RequestError


@given(T=st.integers(4, 20), V=st.integers(2, 50), seed=st.integers(0, 99))
def test_losses_are_those_of_the_second_half(T: int, V: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (T, V)).astype(np.float32)
    token_ids = rng.integers(0, V, T).tolist()
    expected = [
        math.log(sum(math.exp(float(x)) for x in logits[i])) - float(logits[i, token_ids[i + 1]])
        for i in range(T // 2, T - 1)
    ]
    assert perplexity.token_losses(logits, token_ids) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_equal_logits_have_the_perplexity_of_the_vocabulary() -> None:
    losses = perplexity.token_losses(np.zeros((16, 50), np.float32), [7] * 16)
    assert math.exp(np.mean(losses)) == pytest.approx(50)


def test_rounds_take_turns_and_turn_round() -> None:
    order: list[str] = []
    cases = {name: (lambda name=name: order.append(name)) for name in "ab"}
    common.interleaved(cases, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_the_better_way_of_the_peer_counts_for_each_figure() -> None:
    runs = [{"plain": (10.0, 5.0), "repacked": (30.0, 4.0)}, {"plain": (12.0, 7.0), "repacked": (20.0, 4.0)}]
    found = summary(runs, n_prompt=512, n_decode=128)
    assert (found["prefill_tokens_per_s"], found["decode_tokens_per_s"]) == (25.0, 6.0)


def test_prompts_of_different_seeds_differ_from_the_first_token_on() -> None:
    firsts = {common.random_prompt(4, 10**6, seed)[0] for seed in range(20)}
    assert len(firsts) == 20


def test_ids_are_numbers() -> None:
    assert parse_ids("1, 2,3") == [1, 2, 3]
    with pytest.raises(RequestError, match="'x' is not a token id"):
        parse_ids("1,x")
    with pytest.raises(RequestError, match="empty"):
        parse_ids(" , ")

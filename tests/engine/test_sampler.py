from __future__ import annotations

import numpy as np
import pytest

from ollama_zmq.engine.penalties import penalized
from ollama_zmq.engine.sampler import Sampler
from ollama_zmq.errors import OpError
from ollama_zmq.formats.options import Options

GOLDEN = [3868, 803, 3220, 1529, 2522, 4880, 3868, 185, 2522, 803, 639, 1969]


def sampler(seed=1, num_ctx=100, **options):
    return Sampler(Options(**options), seed=seed, num_ctx=num_ctx)


def logits(*values):
    return np.array(values, np.float32)


def test_temperature_zero_takes_the_largest_and_the_lowest_id_of_equals():
    assert sampler(temperature=0.0).sample(logits(1, 3, 2, 3), []) == 1
    assert sampler(temperature=-1.0).sample(logits(1, 3, 2, 3), []) == 1


def test_greedy_ignores_the_filters():
    rows = np.random.default_rng(0).normal(0, 1, (50, 500)).astype(np.float32)
    odd = sampler(temperature=0.0, typical_p=0.01, top_k=3, top_p=0.1)
    assert [odd.sample(row, []) for row in rows] == rows.argmax(1).tolist()


def test_a_seed_always_means_the_same_tokens():
    """The numbers of this version; if they change, every user's seeded text changes."""
    row = np.random.default_rng(5).normal(0, 2, 5000).astype(np.float32)
    first, other = sampler(seed=42), sampler(seed=43)
    drawn = [first.sample(row, []) for _ in range(12)]
    assert drawn == GOLDEN
    assert [other.sample(row, []) for _ in range(12)] != drawn
    assert [sampler(seed=42 + 2**64).sample(row, [])] == drawn[:1]


def test_sampled_shares_are_those_of_the_filtered_distribution():
    row = logits(2.0, 1.5, 1.0, 0.5, 0.0, -1.0)
    chooser = sampler(seed=3, top_k=4, top_p=1.0, temperature=0.7)
    counts = np.bincount([chooser.sample(row, []) for _ in range(20_000)], minlength=6)
    weights = np.exp(row[:4].astype(float) / 0.7)
    expected = 20_000 * weights / weights.sum()
    assert counts[4:].tolist() == [0, 0]
    assert ((counts[:4] - expected) ** 2 / expected).sum() < 16.3  # chi squared, 3 degrees of freedom, p = 0.001


def test_filters_apply_in_the_order_top_k_typical_top_p_min_p():
    """top_p counts shares among the top_k: 3 of 4 equals reach 0.7; of all 100 it would take 70."""
    row = np.zeros(100, np.float32)
    assert {sampler(seed=s, top_k=4, top_p=0.7).sample(row, []) for s in range(200)} == {0, 1, 2}


def test_penalties_are_those_of_the_definition():
    row = logits(2.0, -2.0, 2.0, 1.0)
    changed = penalized(row, [0, 1, 0, 99], repeat=2.0, presence=0.25, frequency=0.5)
    assert changed.tolist() == [2.0 / 2 - 0.25 - 1.0, -2.0 * 2 - 0.25 - 0.5, 2.0, 1.0]
    assert row.tolist() == [2.0, -2.0, 2.0, 1.0]


@pytest.mark.parametrize(("last_n", "chosen"), [(0, 0), (2, 0), (3, 1), (-1, 1)])
def test_repeat_last_n_is_how_far_penalties_look_back(last_n, chosen):
    options = {"temperature": 0.0, "repeat_penalty": 1.5, "repeat_last_n": last_n}
    assert sampler(**options).sample(logits(3.0, 2.5), [0, 5, 6]) == chosen  # tokens beyond the logits do no harm


def test_repeat_last_n_of_minus_one_looks_back_one_context():
    chooser = sampler(num_ctx=2, temperature=0.0, repeat_penalty=1.5, repeat_last_n=-1)
    assert chooser.sample(logits(3.0, 2.5), [0, 1, 1]) == 0
    assert chooser.sample(logits(3.0, 2.5), [1, 0, 0]) == 1


def test_enormous_penalties_stay_finite():
    chooser = sampler(temperature=1.0, frequency_penalty=-3e38, repeat_penalty=1e-30)
    assert chooser.sample(logits(3.0, 2.5, 1.0), [1, 1, 1]) == 1


def test_a_repeat_penalty_of_zero_is_llama_cpps():
    """A positive logit by zero is as large as can be, another one times zero is zero."""
    changed = penalized(logits(2.0, -2.0, 0.0, 1.0, -np.inf), [0, 1, 2, 4], repeat=0.0, presence=0.0, frequency=0.0)
    assert changed.tolist() == [np.float32(3e38), 0.0, 0.0, 1.0, -np.inf]
    assert sampler(temperature=0.0, repeat_penalty=0.0).sample(logits(3.0, 2.5, -1.0), [2, 1]) == 1
    assert {sampler(seed=s, repeat_penalty=0.0).sample(logits(3.0, 2.5, -1.0), [2, 1]) for s in range(20)} == {1}


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.8, 3e38])
@pytest.mark.parametrize("repeat", [0.0, -0.0, -1.0, 1e-45, -1e-45, 3e38, -3e38])
@pytest.mark.parametrize("other", [0.0, 3e38, -3e38])
@pytest.mark.parametrize("filters", [{}, {"top_k": 0, "top_p": 1.0}, {"typical_p": 0.5, "min_p": 0.1}])
def test_any_penalty_leaves_numbers_and_never_brings_what_may_never_come(temperature, repeat, other, filters):
    penalties = {"repeat_penalty": repeat, "presence_penalty": other, "frequency_penalty": other}
    row = logits(3.0, -np.inf, -2.0, 0.0, 1e-45, 3e38)
    for seed in range(5):
        chooser = sampler(seed=seed, temperature=temperature, **penalties, **filters)
        assert chooser.sample(row, [0, 1, 1, 2, 3, 4, 5]) in (0, 2, 3, 4, 5)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("V", [5, 5000])
def test_logits_that_are_no_numbers_are_named(temperature, bad, V):
    row = np.zeros(V, np.float32)
    row[3] = bad
    with pytest.raises(OpError, match=rf"logits\[3\]={bad}"):
        sampler(temperature=temperature).sample(row, [])


def test_minus_infinity_is_a_token_that_never_comes_unless_nothing_else_is_left():
    assert {sampler(seed=s).sample(logits(-np.inf, 0.0, -np.inf), []) for s in range(20)} == {1}
    with pytest.raises(OpError, match=r"logits\[0\]=-inf"):
        sampler().sample(logits(-np.inf, -np.inf), [])


def test_logits_are_not_written():
    row = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    row.flags.writeable = False
    sampler(repeat_penalty=1.3).sample(row, [1, 2, 3])

"""What is drawn from the head of the sorted tokens is what is drawn from all of them sorted."""

from __future__ import annotations

import numpy as np
import pytest

from ollama_zmq.engine import filters
from ollama_zmq.engine.head import HEADS, drawn_from_head
from ollama_zmq.engine.sampler import Sampler
from ollama_zmq.formats.options import Options

V = 2 * HEADS[-1] + 77
OPTIONS = [
    {"top_p": 0.9},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_p": 0.0},
    {"top_p": 1.0, "min_p": 0.05},
    {"top_p": 1.0, "min_p": 1e-12},
    {"top_p": 1.0, "min_p": 0.0},
    {"top_p": 1.0, "min_p": 0.0, "temperature": 3.0},
    {"top_p": 0.999, "min_p": 0.0, "temperature": 0.01},
    {"top_p": 1.0, "min_p": 0.0, "temperature": 1e-320},
]
SPREADS = [0.0, 0.5, 3.0, 8.0, 60.0]  # of the logits: from flat to one that has it all


def drawn(spread, seed):
    return (np.random.default_rng(seed).normal(size=V) * spread).astype(np.float32)


def from_all(logits, options, u):
    candidates = filters.largest(logits, 0)
    candidates = filters.keep_top_p(*candidates, options.top_p)
    return filters.draw(*filters.keep_min_p(*candidates, options.min_p), options.temperature, u)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_a_token_of_the_head_is_that_of_all(spread, changes):
    options = Options(top_k=0, **changes)
    for seed in range(6):
        logits = drawn(spread, seed)
        for u in (0.0, 0.3, 0.77, 0.999, 1 - 2.0**-53):
            assert drawn_from_head(logits, options, u) in (None, from_all(logits, options, u))


def test_peaked_logits_need_no_more_than_a_head():
    """And logits that are all alike do."""
    assert drawn_from_head(drawn(8.0, 1), Options(top_k=0, top_p=0.9), 0.5) is not None
    assert drawn_from_head(drawn(8.0, 1), Options(top_k=0, top_p=1.0, min_p=0.05), 0.5) is not None
    assert drawn_from_head(drawn(0.0, 1), Options(top_k=0, top_p=0.9), 0.5) is None
    assert drawn_from_head(drawn(0.0, 1), Options(top_k=0, top_p=1.0, min_p=0.05), 0.5) is None


@pytest.mark.parametrize("spread", SPREADS)
def test_the_sampler_draws_the_same_with_top_k_off_and_with_all(spread):
    logits = drawn(spread, 9)
    off, everything = (Sampler(Options(top_k=k), seed=4, num_ctx=10) for k in (0, V - 1))
    assert [off.sample(logits, []) for _ in range(20)] == [everything.sample(logits, []) for _ in range(20)]

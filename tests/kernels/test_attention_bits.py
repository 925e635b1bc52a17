"""The bits of attention depend on the token and its sequence: not on passes, pages, threads or instruction set."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import PAGE_SLOTS, WeightSpec
from tests.ops.one_op import hidden, plain, ready

FEW = settings(max_examples=10, deadline=None)
LENGTH = 3 * PAGE_SLOTS - 11
SHAPES = [(1, 1, 16), (3, 3, 64), (2, 4, 18), (1, 13, 34), (2, 1, 128), (1, 2, 576)]  # kv heads, group, head_dim


def program(G, group, E):
    """x [T, G * group * E] as queries over keys and values that are a linear of it."""
    ops = Builder("attention")
    x = ops.input("x", ("T", G * group * E))
    cache = ops.cache("kv", n_kv_heads=G, head_dim=E)
    kv = ops.linear(x, ops.weight(spec(G, group, E)))
    ops.store_kv(kv, kv, cache, n_kv_heads=G, head_dim=E)
    return ops.program("out", ops.attention(x, cache, n_heads=G * group, n_kv_heads=G, head_dim=E, scale=E**-0.5))


def spec(G, group, E):
    return WeightSpec("w", 0, (G * E, G * group * E))


def drawn_layer(G, group, E, n_tokens, seed):
    rng = np.random.default_rng(seed)
    x = hidden(rng, n_tokens, G * group * E) / 30
    return x, {"w": plain(rng.normal(0, 0.1, size=(G * E, G * group * E)).astype(np.float32))}


def whole(run, x, pages):
    return np.array(run(x, Step.of([len(x)], [0], [pages])))


@pytest.mark.parametrize(("G", "group", "E"), SHAPES)
def test_every_instruction_set_gives_the_same_bits(devices, G, group, E):
    x, weights = drawn_layer(G, group, E, PAGE_SLOTS + 9, 1)
    outs = []
    for device in devices.values():
        with ready(device, program(G, group, E), weights, kv_pages=2, max_tokens=len(x)) as run:
            outs.append(whole(run, x, [1, 0]))
    assert np.isfinite(outs[0]).all()
    for out in outs[1:]:
        assert_array_equal(out, outs[0])


@pytest.mark.parametrize(("G", "group", "E"), SHAPES)
@FEW
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6, unique=True), pages=st.permutations(range(4)))
def test_decode_and_chunks_continue_prefill(device, G, group, E, cuts, pages):
    x, weights = drawn_layer(G, group, E, LENGTH, 2)
    with ready(device, program(G, group, E), weights, kv_pages=4, max_tokens=LENGTH) as run:
        expected = whole(run, x, [0, 1, 2])
        borders = sorted({0, *cuts, LENGTH - 3, LENGTH - 2, LENGTH - 1, LENGTH})
        for begin, end in pairwise(borders):
            out = run(x[begin:end], Step.of([end - begin], [begin], [pages]))
            assert_array_equal(out, expected[begin:end])


@pytest.mark.parametrize(("G", "group", "E"), SHAPES[:3])
def test_neighbours_and_threads_do_not_change_the_bits(threads, device, G, group, E):
    x, weights = drawn_layer(G, group, E, 150, 3)
    lengths = [70, 1, 64, 15]
    borders = np.cumsum([0, *lengths])
    pages = [[0, 1], [2], [3], [4]]
    with ready(device, program(G, group, E), weights, kv_pages=5, max_tokens=150) as run:
        alone = [whole(run, x[a:b], [4, 2]) for a, b in pairwise(borders)]
    with ready(threads, program(G, group, E), weights, kv_pages=5, max_tokens=150) as run:
        together = run(x, Step.of(lengths, [0] * 4, pages))
        assert_array_equal(together, np.concatenate(alone))


def test_what_a_page_held_before_does_not_show(device):
    """Slots past a token are not read: infinities there would turn a sum into NaN."""
    x, weights = drawn_layer(2, 2, 16, 20, 4)
    with ready(device, program(2, 2, 16), weights, kv_pages=1, max_tokens=64) as run:
        clean = whole(run, x, [0])
        whole(run, np.full((64, x.shape[1]), np.inf, np.float32), [0])
        assert_array_equal(whole(run, x, [0]), clean)

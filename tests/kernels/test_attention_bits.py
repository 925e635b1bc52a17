"""The bits of attention depend on the token and its sequence: not on passes, pages, threads or instruction set."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec
from ollama_zmq.ops.state import PAGE_SLOTS
from tests.ops.one_op import hidden, plain, ready

FEW = settings(max_examples=10, deadline=None)
LENGTH = 3 * PAGE_SLOTS - 11
SHAPES = [(1, 1, 16), (3, 3, 64), (2, 4, 18), (1, 13, 34), (2, 1, 128), (1, 2, 576)]  # kv heads, group, head_dim


VARIANTS = {
    "f16": ("f16", {}),
    "f16 windowed": ("f16", {"window": 70, "softcap": 4.0}),
    "q8_0": ("q8_0", {}),
    "q8_0 windowed": ("q8_0", {"window": 3, "softcap": 4.0}),
}


def program(G, group, E, variant="f16"):
    """x [T, G * group * E] as queries over keys and values that are a linear of it; its first numbers are sinks too."""
    kv_type, options = VARIANTS[variant]
    ops = Builder("attention")
    x = ops.input("x", ("T", G * group * E))
    cache = ops.cache("kv", n_kv_heads=G, head_dim=E, kv_type=kv_type)
    kv = ops.linear(x, ops.weight(spec(G, group, E)))
    ops.store_kv(kv, kv, cache, n_kv_heads=G, head_dim=E)
    sinks = ops.weight(WeightSpec("sinks", 0, (G * group,))) if options else None
    heads = {"n_heads": G * group, "n_kv_heads": G, "head_dim": E}
    return ops.program("out", ops.attention(x, cache, sinks, **heads, scale=E**-0.5, **options))


def spec(G, group, E):
    return WeightSpec("w", 0, (G * E, G * group * E))


def drawn_layer(G, group, E, n_tokens, seed):
    rng = np.random.default_rng(seed)
    x = hidden(rng, n_tokens, G * group * E) / 30
    w = rng.normal(0, 0.1, size=(G * E, G * group * E)).astype(np.float32)
    return x, {"w": plain(w), "sinks": plain(rng.normal(size=G * group).astype(np.float32))}


def whole(run, x, pages):
    return np.array(run(x, Step.of([len(x)], [0], [pages])))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("G", "group", "E"), SHAPES)
def test_every_instruction_set_gives_the_same_bits(devices, G, group, E, variant):
    x, weights = drawn_layer(G, group, E, PAGE_SLOTS + 9, 1)
    outs = []
    for device in devices.values():
        with ready(device, program(G, group, E, variant), weights, kv_pages=2, max_tokens=len(x)) as run:
            outs.append(whole(run, x, [1, 0]))
    assert np.isfinite(outs[0]).all()
    for out in outs[1:]:
        assert_array_equal(out, outs[0])


@pytest.mark.parametrize(("G", "group", "E"), SHAPES)
@FEW
@given(
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6, unique=True),
    pages=st.permutations(range(4)),
    variant=st.sampled_from(list(VARIANTS)),
)
def test_decode_and_chunks_continue_prefill(device, G, group, E, cuts, pages, variant):
    x, weights = drawn_layer(G, group, E, LENGTH, 2)
    with ready(device, program(G, group, E, variant), weights, kv_pages=4, max_tokens=LENGTH) as run:
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


@pytest.mark.parametrize("variant", VARIANTS)
def test_runs_cut_over_threads_give_the_bits_of_whole_blocks(threads, variant):
    """1100 slots are three runs. A pass of all has no room for their records, one of few tokens has, and is cut."""
    G, group, E, n = 3, 2, 16, 1100
    x, weights = drawn_layer(G, group, E, n, 5)
    pages = np.random.default_rng(6).permutation(2 * 18).reshape(2, 18)
    with ready(threads, program(G, group, E, variant), weights, kv_pages=36, max_tokens=n) as run:
        expected = whole(run, x, pages[0])
        whole(run, x[:700], pages[1])
        for begin, end in ((1095, 1097), (1097, 1098), (1098, 1100)):
            lengths, positions = [end - begin, 1], [begin, 699]
            out = run(np.concatenate([x[begin:end], x[699:700]]), Step.of(lengths, positions, pages))
            assert_array_equal(out, np.concatenate([expected[begin:end], expected[699:700]]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nan_reaches_who_attends_to_it_and_nobody_else(device, variant):
    x, weights = drawn_layer(2, 2, 32, 150, 7)
    x[70, 3] = np.nan
    with ready(device, program(2, 2, 32, variant), weights, kv_pages=3, max_tokens=150) as run:
        bad = np.isnan(whole(run, x, [2, 0, 1]))
    window = VARIANTS[variant][1].get("window", 150)
    assert bad[70 : 70 + window].all()
    assert not bad[:70].any()
    assert not bad[70 + window :].any()


def test_what_a_page_held_before_does_not_show(device):
    """Slots past a token are not read: infinities there would turn a sum into NaN."""
    x, weights = drawn_layer(2, 2, 16, 20, 4)
    with ready(device, program(2, 2, 16), weights, kv_pages=1, max_tokens=64) as run:
        clean = whole(run, x, [0])
        whole(run, np.full((64, x.shape[1]), np.inf, np.float32), [0])
        assert_array_equal(whole(run, x, [0]), clean)

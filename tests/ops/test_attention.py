"""Laws of ``attention`` and ``store_kv`` on every device: through programs, pages, sequences and passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.attention import ATTENTION
from ollama_zmq.ops.program import PAGE_SLOTS
from ollama_zmq.ops.store_kv import STORE_KV
from tests.ops.one_op import Tables, ready, seeds
from tests.reference.attention import attention
from tests.reference.store_kv import store_kv

KV_PAGES = 12
GROUPS = st.sampled_from([1, 3, 4, 8])
HEAD_DIMS = st.sampled_from([16, 64, 80, 128])


class Layer:
    """Queries, keys and values of some tokens, and the program that stores and attends."""

    def __init__(self, rng, n_tokens, *, n_kv_heads=2, group=2, head_dim=16):
        self.heads = {"n_heads": n_kv_heads * group, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        self.kv_heads = {"n_kv_heads": n_kv_heads, "head_dim": head_dim}
        self.scale = head_dim**-0.5
        self.q = rng.normal(0, 2, size=(n_tokens, n_kv_heads * group * head_dim)).astype(np.float32)
        self.k, self.v = (rng.normal(size=(n_tokens, n_kv_heads * head_dim)).astype(np.float32) for _ in range(2))

    def ready(self, device):
        """The program on *device*, its cache and scratch full of NaN."""
        tables = Tables("attention")
        cache = tables.ops.cache("kv.0", **self.kv_heads)
        k, v, q = tables.rows("k", self.k), tables.rows("v", self.v), tables.rows("q", self.q)
        tables.ops.store_kv(k, v, cache, **self.kv_heads)
        out = tables.ops.attention(q, cache, **self.heads, scale=self.scale)
        program = tables.ops.program("out", out)
        return ready(device, program, tables.weights, kv_pages=KV_PAGES, max_tokens=KV_PAGES * PAGE_SLOTS)

    def expected(self, tokens, context):
        """What the last *tokens* of the sequence of rows *context* must give, and what its error is relative to."""
        k, v = (store_kv(rows[context], **self.kv_heads) for rows in (self.k, self.v))
        positions = np.arange(len(context) - len(tokens), len(context))
        both = np.concatenate([v, np.abs(v)], axis=2)
        out = attention(self.q[tokens], k, both, positions, **self.heads, scale=self.scale)
        return [half.reshape(len(tokens), -1) for half in np.split(out, 2, axis=2)]


def poison(run, layer):
    """Fill every page of the cache with NaN: the tables' last row."""
    step = Step.of([PAGE_SLOTS] * KV_PAGES, [0] * KV_PAGES, [[page] for page in range(KV_PAGES)])
    run(np.full(KV_PAGES * PAGE_SLOTS, len(layer.q), np.int32), step)


def assert_close(out, *expected):
    """*out* is what the sequences' *expected* say, one after another."""
    wanted, size = np.concatenate(expected, axis=1)
    assert np.all(np.abs(out - wanted) <= ATTENTION.rtol * size + ATTENTION.atol)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), group=GROUPS, head_dim=HEAD_DIMS, n_kv_heads=st.sampled_from([1, 2, 3]), seed=seeds)
def test_sequences_in_shuffled_pages_and_any_passes_agree_with_reference(
    device, data, group, head_dim, n_kv_heads, seed
):
    """Three sequences of up to three pages each, in chunks that hypothesis cuts, several sequences in a pass."""
    rng = np.random.default_rng(seed)
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=3))
    layer = Layer(rng, sum(lengths), n_kv_heads=n_kv_heads, group=group, head_dim=head_dim)
    tokens = np.split(np.arange(sum(lengths), dtype=np.int32), np.cumsum(lengths)[:-1])
    pages = np.split(rng.permutation(KV_PAGES), 3)
    done = [0] * len(tokens)
    with layer.ready(device) as run:
        poison(run, layer)
        while any(done[b] < len(tokens[b]) for b in range(len(tokens))):
            left = [b for b in range(len(tokens)) if done[b] < len(tokens[b])]
            chosen = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
            counts = [min(int(data.draw(st.sampled_from([1, 7, 64, 150]))), len(tokens[b]) - done[b]) for b in chosen]
            chunks = [tokens[b][done[b] : done[b] + n] for b, n in zip(chosen, counts, strict=True)]
            step = Step.of(counts, [done[b] for b in chosen], [pages[b] for b in chosen])
            out = run(np.concatenate(chunks), step)
            for b, n in zip(chosen, counts, strict=True):
                done[b] += n
            expected = [layer.expected(chunk, tokens[b][: done[b]]) for b, chunk in zip(chosen, chunks, strict=True)]
            assert_close(out, *expected)


@pytest.fixture
def layer():
    return Layer(np.random.default_rng(11), 3 * PAGE_SLOTS)


def test_a_shared_first_page_serves_two_sequences(device, layer):
    first, one, two = np.split(np.arange(2 * PAGE_SLOTS, dtype=np.int32), [PAGE_SLOTS, PAGE_SLOTS + 20])
    with layer.ready(device) as run:
        poison(run, layer)
        run(first, Step.of([PAGE_SLOTS], [0], [[7]]))
        step = Step.of([len(one), len(two)], [PAGE_SLOTS, PAGE_SLOTS], [[7, 2], [7, 5]])
        out = run(np.concatenate([one, two]), step)
    expected = [layer.expected(tail, np.concatenate([first, tail])) for tail in (one, two)]
    assert_close(out, *expected)


def test_a_page_that_is_used_again_forgets(device, layer):
    with layer.ready(device) as run:
        poison(run, layer)
        run(np.arange(40, dtype=np.int32), Step.of([40], [0], [[3]]))
        tokens = np.arange(100, 110, dtype=np.int32)
        out = run(tokens, Step.of([10], [0], [[3]]))
    assert_close(out, layer.expected(tokens, tokens))


def test_one_position_returns_its_value(device, layer):
    """A softmax over one score is 1: what comes back is the value, rounded to float16 as the cache is."""
    with layer.ready(device) as run:
        poison(run, layer)
        out = run(np.array([5], np.int32), Step.of([1], [0], [[0]]))
    value = store_kv(layer.v[5:6], **layer.kv_heads)
    assert_allclose(out.reshape(1, 2, 2, 16), np.repeat(value[:, :, None], 2, axis=2), rtol=1e-6, atol=1e-7)


def test_the_cache_rounds_to_nearest_even(device):
    """Values halfway between two float16, below the smallest one, and of both signs; 65504 is the largest."""
    halfway = [1 + 2**-11, 1 + 3 * 2**-11, -(1 + 2**-11), 2**-25, 2**-24, 6.1e-5, 65504, -65504, 0.1, 1 / 3, 2049, 2051]
    layer = Layer(np.random.default_rng(12), 1, n_kv_heads=1, group=1)
    layer.v[0, : len(halfway)] = halfway
    with layer.ready(device) as run:
        out = run(np.array([0], np.int32), Step.of([1], [0], [[1]]))
    assert_allclose(out, store_kv(layer.v, **layer.kv_heads)[0], rtol=1e-6, atol=1e-12)


def test_large_scores_stay_finite(device):
    """Scores of tens of thousands: the largest is taken off before exp."""
    layer = Layer(np.random.default_rng(13), 70)
    layer.q *= 1e4
    tokens = np.arange(70, dtype=np.int32)
    with layer.ready(device) as run:
        poison(run, layer)
        out = run(tokens, Step.of([70], [0], [[4, 1]]))
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (Step.of([1], [PAGE_SLOTS], [[0]]), r"pages\[0\] hold 64 slots, position 64"),
        (Step.of([1], [0], [[]]), r"pages\[0\] hold 0 slots"),
        (Step.of([1], [0], [[KV_PAGES]]), r"pages\[0\] are 12..12, expected 0..11"),
        (Step.of([1], [0], [[-1]]), r"pages\[0\] are -1..-1"),
        (Step.of([1], [0], [[0] * (KV_PAGES + 1)]), r"pages\[0\] are 13, but the cache has 12"),
        (Step.of([1], [0], []), r"pages \[0\] differ"),
        (Step.of([1, 1], [0], [[0], [1]]), r"positions \[1\]"),
        (Step.of([0], [0], [[0]]), "lengths start at 1"),
        (Step.of([1], [-1], [[0]]), "positions at 0"),
        (Step.of([KV_PAGES * PAGE_SLOTS + 1], [0], [range(KV_PAGES)]), "T=769 tokens, planned for 768"),
        (Step.of([2], [0], [[0]]), r"token_ids: int32 \(1,\), expected int32 \(2,\)"),
    ],
)
def test_a_step_outside_the_plan_is_refused_and_changes_nothing(device, layer, step, named):
    tokens = np.arange(20, dtype=np.int32)
    with layer.ready(device) as run:
        run(tokens[:19], Step.of([19], [0], [[0]]))
        with pytest.raises(ShapeError, match=named):
            run(np.array([50], np.int32), step)
        out = run(tokens[19:], Step.of([1], [19], [[0]]))
    assert_close(out, layer.expected(tokens[19:], tokens))


def test_bits_of_a_run_do_not_depend_on_the_run_before(device, layer):
    tokens = np.arange(90, dtype=np.int32)
    step = Step.of([90], [0], [[1, 0]])
    with layer.ready(device) as run:
        first = run(tokens, step)
        poison(run, layer)
        assert_array_equal(run(tokens, step), first)


def test_wrong_head_counts_are_named():
    attrs = {"n_heads": 4, "n_kv_heads": 3, "head_dim": 8, "scale": 1.0}
    with pytest.raises(OpError, match="n_heads=4 is not a multiple of n_kv_heads=3"):
        ATTENTION.infer({"q": ("T", 32), "cache": (3, 8)}, attrs)


def test_a_cache_of_another_shape_is_named():
    with pytest.raises(ShapeError, match=r"store_kv\.cache: E=16, but E=8 elsewhere"):
        STORE_KV.infer({"k": ("T", 16), "v": ("T", 16), "cache": (2, 16)}, {"n_kv_heads": 2, "head_dim": 8})

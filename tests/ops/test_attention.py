"""Laws of ``attention`` and ``store_kv`` on every device: through programs, pages, sequences and passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.attention import ATTENTION, ATTENTION_SINKS, Q8_0_RTOL
from ollama_zmq.ops.state import PAGE_SLOTS
from ollama_zmq.ops.store_kv import STORE_KV
from tests.ops.one_op import Tables, plain, ready, seeds
from tests.reference.attention import attention
from tests.reference.store_kv import store_kv

KV_PAGES = 12
GROUPS = st.sampled_from([1, 3, 4, 8])
HEAD_DIMS = st.sampled_from([16, 33, 64, 80, 128])
KV_TYPES = ("f16", "q8_0")
RTOL = {"f16": ATTENTION.rtol, "q8_0": Q8_0_RTOL}
VARIANTS = {
    "plain": {},
    "window": {"window": 50},
    "a window of one": {"window": 1},
    "softcap": {"softcap": 5.0},
    "sinks": {"with_sinks": True},
    "all": {"window": 70, "softcap": 3.0, "with_sinks": True},
}


class Layer:
    """Queries, keys and values of some tokens, and the program that stores and attends.

    For a q8_0 cache every block holds whole 64ths up to 127/64, which it gives back as they are.
    """

    def __init__(
        self,
        rng,
        n_tokens,
        *,
        n_kv_heads=2,
        group=2,
        head_dim=16,
        value_dim=None,
        kv_type="f16",
        window=None,
        softcap=0.0,
        with_sinks=False,
    ):
        self.value_dim = head_dim if value_dim is None else value_dim
        self.kv_type = kv_type
        self.heads = {"n_heads": n_kv_heads * group, "n_kv_heads": n_kv_heads, "head_dim": head_dim}
        self.kv_heads = {"n_kv_heads": n_kv_heads, "head_dim": head_dim}
        self.options = {"scale": head_dim**-0.5, "window": window, "softcap": softcap}
        self.sinks = rng.normal(0, 2, size=n_kv_heads * group).astype(np.float32) if with_sinks else None
        self.q = rng.normal(0, 2, size=(n_tokens, n_kv_heads * group * head_dim)).astype(np.float32)
        self.k, self.v = (drawn(rng, kv_type, n_tokens, n_kv_heads, dim) for dim in (head_dim, self.value_dim))

    def ready(self, device):
        """The program on *device*, its cache and scratch full of NaN."""
        tables = Tables("attention")
        dims = self.kv_heads | {"value_dim": self.value_dim}
        cache = tables.ops.cache("kv.0", **dims, kv_type=self.kv_type)
        k, v, q = tables.rows("k", self.k), tables.rows("v", self.v), tables.rows("q", self.q)
        tables.ops.store_kv(k, v, cache, **dims)
        sinks = None if self.sinks is None else tables.weight("sinks", plain(self.sinks))
        out = tables.ops.attention(q, cache, sinks, **self.heads, value_dim=self.value_dim, **self.options)
        program = tables.ops.program("out", out)
        return ready(device, program, tables.weights, kv_pages=KV_PAGES, max_tokens=KV_PAGES * PAGE_SLOTS)

    def expected(self, tokens, context):
        """What the last *tokens* of the sequence of rows *context* must give, and what its error is relative to."""
        k, v = self.kept(self.k[context], "head_dim"), self.kept(self.v[context], "value_dim")
        positions = np.arange(len(context) - len(tokens), len(context))
        both = np.concatenate([v, np.abs(v)], axis=2)
        out = attention(self.q[tokens], k, both, positions, **self.heads, **self.options, sinks=self.sinks)
        return [half.reshape(len(tokens), -1) for half in np.split(out, 2, axis=2)]

    def kept(self, rows, dim):
        """Keys or values as the cache gives them back."""
        head_dim = {"head_dim": self.heads["head_dim"], "value_dim": self.value_dim}[dim]
        return store_kv(rows, n_kv_heads=self.heads["n_kv_heads"], head_dim=head_dim, kv_type=self.kv_type)


def drawn(rng, kv_type, n_tokens, n_kv_heads, dim):
    """Keys or values [n_tokens, n_kv_heads * dim]."""
    if kv_type == "f16":
        return rng.normal(size=(n_tokens, n_kv_heads * dim)).astype(np.float32)
    steps = rng.integers(-127, 128, size=(n_tokens, n_kv_heads, dim))
    steps[:, :, ::32] = 127
    return (steps / 64).reshape(n_tokens, -1).astype(np.float32)


def poison(run, layer):
    """Fill every page of the cache with NaN: the tables' last row."""
    step = Step.of([PAGE_SLOTS] * KV_PAGES, [0] * KV_PAGES, [[page] for page in range(KV_PAGES)])
    run(np.full(KV_PAGES * PAGE_SLOTS, len(layer.q), np.int32), step)


def assert_close(out, *expected, kv_type="f16"):
    """*out* is what the sequences' *expected* say, one after another."""
    wanted, size = np.concatenate(expected, axis=1)
    assert np.all(np.abs(out - wanted) <= RTOL[kv_type] * size + ATTENTION.atol)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    group=GROUPS,
    head_dim=HEAD_DIMS,
    n_kv_heads=st.sampled_from([1, 2, 3]),
    seed=seeds,
    variant=st.sampled_from(list(VARIANTS)),
)
def test_sequences_in_shuffled_pages_and_any_passes_agree_with_reference(
    device, kv_type, data, group, head_dim, n_kv_heads, seed, variant
):
    """Three sequences of up to three pages each, in chunks that hypothesis cuts, several sequences in a pass."""
    rng = np.random.default_rng(seed)
    lengths = data.draw(st.lists(st.integers(1, 150), min_size=1, max_size=3))
    sizes = {"n_kv_heads": n_kv_heads, "group": group, "head_dim": head_dim}
    layer = Layer(rng, sum(lengths), **sizes, kv_type=kv_type, **VARIANTS[variant])
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
            assert_close(out, *expected, kv_type=kv_type)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(32, 32), (576, 512), (40, 72)])
def test_a_context_of_several_runs_agrees_with_reference(device, kv_type, variant, head_dim, value_dim):
    """The last tokens of 660: a prefill in chunks, then one token, which may be cut over threads."""
    n = 10 * PAGE_SLOTS + 20
    dims = {"head_dim": head_dim, "value_dim": value_dim}
    layer = Layer(np.random.default_rng(3), n, n_kv_heads=1, **dims, kv_type=kv_type, **VARIANTS[variant])
    tokens, pages = np.arange(n, dtype=np.int32), np.arange(KV_PAGES)[::-1]
    with layer.ready(device) as run:
        poison(run, layer)
        run(tokens[: n - 3], Step.of([n - 3], [0], [pages]))
        two = run(tokens[n - 3 : n - 1], Step.of([2], [n - 3], [pages]))
        one = run(tokens[n - 1 :], Step.of([1], [n - 1], [pages]))
    assert_close(two, layer.expected(tokens[n - 3 : n - 1], tokens[: n - 1]), kv_type=kv_type)
    assert_close(one, layer.expected(tokens[n - 1 :], tokens), kv_type=kv_type)


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


def test_a_q8_0_cache_is_off_by_half_a_step(device):
    """Blocks of 32 with a scale each, the last one cut short: as another implementation of the format rounds them."""
    layer = Layer(np.random.default_rng(14), 20, n_kv_heads=3, group=1, head_dim=75, kv_type="q8_0")
    layer.v = np.random.default_rng(15).normal(size=layer.v.shape).astype(np.float32)
    layer.v[:, 32:64] *= 1e-3
    with layer.ready(device) as run:
        out = run(np.arange(12, dtype=np.int32), Step.of([1] * 12, [0] * 12, [[page] for page in range(12)]))
    assert_allclose(out.reshape(12, 3, 75), layer.kept(layer.v[:12], "value_dim"), rtol=1e-6, atol=1e-7)


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


ATTRS = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "value_dim": 8, "scale": 1.0, "window": 1, "softcap": 0.0}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"n_kv_heads": 3}, "n_heads=4 is not a multiple of n_kv_heads=3"),
        ({"window": 0}, r"attention\.window=0 is outside 1\.\."),
        ({"window": -1}, r"attention\.window=-1 is outside 1\.\."),
        ({"softcap": -1.0}, r"attention\.softcap=-1\.0 is outside 0\.\."),
        ({"softcap": float("nan")}, r"attention\.softcap=nan is outside 0\.\."),
    ],
)
def test_impossible_attributes_are_named(wrong, named):
    attrs = ATTRS | wrong
    with pytest.raises(OpError, match=named):
        ATTENTION.infer({"q": ("T", 32), "cache": (attrs["n_kv_heads"], 8, 8)}, attrs)


def test_a_cache_of_another_shape_is_named():
    attrs = {"n_kv_heads": 2, "head_dim": 8, "value_dim": 8}
    with pytest.raises(ShapeError, match=r"store_kv\.cache: E=16, but E=8 elsewhere"):
        STORE_KV.infer({"k": ("T", 16), "v": ("T", 16), "cache": (2, 16, 8)}, attrs)


def test_sinks_are_one_to_a_head():
    with pytest.raises(ShapeError, match=r"attention_sinks\.sinks: H=3, but H=4 elsewhere"):
        ATTENTION_SINKS.infer({"q": ("T", 32), "cache": (2, 8, 8), "sinks": (3,)}, ATTRS)

"""What is asked of all logits has the same answer on every instruction set, and that of a full sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.kernels.cpu import simd
from ollama_zmq.kernels.cpu.logits import exp_sum, largest

SIZES = [1, 15, 16, 17, 63, 64, 65, 1023, 2047, 2048, 2049, 32_767, 32_768, 70_001]
COUNTS = [-1, 0, 1, 2, 40, 512, 513, 8192, 8193, 10**6]
FEW = settings(max_examples=25, deadline=None)


@pytest.fixture(params=simd.isa_names())
def kernels(request):
    return simd.kernels_named(request.param)


def sorted_ids(logits, k):
    """The definition: a stable sort, in which the lowest id among equals comes first."""
    order = np.argsort(-logits, kind="stable")
    return order[:k] if k > 0 else order


@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize("values", [1, 3, 2000, 10**9])  # few distinct ones: many ties
def test_largest_are_the_first_of_a_full_sort(kernels, V, values):
    rng = np.random.default_rng(V * 7 + values)
    logits = (rng.integers(-values // 2, values, V) / values).astype(np.float32)
    for k in COUNTS:
        assert_array_equal(largest(logits, k, kernels), sorted_ids(logits, k))


@FEW
@given(seed=st.integers(0, 2**32 - 1), V=st.integers(1, 5000), k=st.integers(1, 600))
def test_any_bits_that_are_numbers_are_sorted_as_numbers(seed, V, k):
    """Both zeros are equal; subnormal numbers and infinities have their place."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 2**32, V, dtype=np.uint32).view(np.float32)
    odd = np.array([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, 3e38, -3e38], np.float32)
    logits = np.where(np.isnan(logits) | (rng.random(V) < 0.3), rng.choice(odd, V), logits)
    for isa in simd.isa_names():
        assert_array_equal(largest(logits, k, simd.kernels_named(isa)), sorted_ids(logits, k))


@pytest.mark.parametrize("V", [1, 17, 5000])
@pytest.mark.parametrize("k", [1, 40, 0])
def test_the_first_nan_counts_as_the_largest_and_stands_alone(kernels, V, k):
    logits = np.zeros(V, np.float32)
    logits[V // 3] = np.inf
    logits[V // 2 :] = np.nan
    logits[-1:] = -np.float32(np.nan)
    assert largest(logits, k, kernels).tolist() == [V // 2]


def test_logits_that_are_all_minus_infinity_come_by_id(kernels):
    assert largest(np.full(50_000, -np.inf, np.float32), 3, kernels).tolist() == [0, 1, 2]


def test_no_logits_have_no_largest(kernels):
    assert largest(np.empty(0, np.float32), 3, kernels).tolist() == []


@pytest.mark.parametrize("V", [0, *SIZES])
@pytest.mark.parametrize("scale", [1.0, 0.01, 1e30])
def test_sums_of_exponentials_have_the_same_bits_and_are_right(V, scale):
    logits = np.random.default_rng(V).normal(0, 5, V).astype(np.float32)
    peak = float(logits.max(initial=0))
    first, *others = (exp_sum(logits, peak, scale, simd.kernels_named(isa)) for isa in simd.isa_names())
    assert set(others) <= {first}
    expected = np.exp((logits.astype(np.float64) - peak) * scale).sum()
    assert abs(first - expected) <= 2e-6 * expected + 1e-30


@pytest.mark.parametrize("isa", simd.isa_names())
def test_memory_of_any_alignment_and_read_only_is_taken(isa):
    frame = bytes(1) + np.arange(3000, dtype=np.float32).tobytes()
    logits = np.require(np.frombuffer(frame, np.float32, offset=1), requirements="A")
    logits.flags.writeable = False
    assert largest(logits, 2, simd.kernels_named(isa)).tolist() == [2999, 2998]

"""The bits of ``linear`` depend on nothing but the row and the weight: not on batch, threads or instruction set.

How far they are from the truth is a law of every device and stands in ``tests/ops/test_linear.py``.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu.weights import FORMATS
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec
from tests.models_tiny import RANDOM_BLOCKS
from tests.ops.one_op import Weight, drawn, hidden, ready

KINDS = [kind.name for kind in QuantType if kind.id in FORMATS]
LONG_ROW = 2560
WIDE_ROWS = (8192, 14336, 18944)  # ffn_down of 1B, 8B and Qwen 7B
FEW = settings(max_examples=10, deadline=None)
heights = st.sampled_from([1, 7, 15, 16, 17, 40])
blocks = st.integers(1, 4)
seeds = st.integers(0, 2**32 - 1)


def linear(weight):
    """The program x [T, K] -> x times *weight*."""
    ops = Builder("linear")
    x = ops.input("x", ("T", weight.shape[1]))
    return ops.program("out", ops.linear(x, ops.weight(WeightSpec("w", weight.type.id, weight.shape))))


def product(device, weight, *inputs):
    """What the device makes of each of *inputs*."""
    with ready(device, linear(weight), {"w": weight}, max_tokens=80) as run:
        return [np.array(run(x, Step.of([len(x)] * bool(len(x)), [0] * bool(len(x))))) for x in inputs]


def width(kind, n_blocks):
    block = QuantType[kind].block_size
    return n_blocks * block if block > 1 else n_blocks * 19


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(T=st.integers(1, 26), N=heights, n_blocks=blocks, seed=seeds)
def test_every_instruction_set_gives_the_same_bits(devices, kind, T, N, n_blocks, seed):
    rng = np.random.default_rng(seed)
    weight = drawn(rng, kind, N, width(kind, n_blocks))
    x = hidden(rng, T, weight.shape[1])
    first, *others = (product(device, weight, x)[0] for device in devices.values())
    assert np.isfinite(first).all()
    for other in others:
        assert_array_equal(other, first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_and_in_any_batch(device, kind):
    rng = np.random.default_rng(1)
    weight = drawn(rng, kind, 49, width(kind, 3))
    x = hidden(rng, 64, weight.shape[1])
    whole, *batches = product(device, weight, x, *(x[:T] for T in range(1, 64)), *(x[t : t + 1] for t in range(64)))
    for T, batch in enumerate(batches[:63], start=1):
        assert_array_equal(batch, whole[:T])
    assert_array_equal(np.concatenate(batches[63:]), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_cut_into_chunks_have_the_bits_of_whole_ones(devices, kind):
    """From the second panel of tokens on, what stays in cache is less than these rows, and more than one group."""
    rng = np.random.default_rng(8)
    weight = drawn(rng, kind, 33, LONG_ROW)
    x = hidden(rng, 14, LONG_ROW)
    for device in devices.values():
        whole, alone = product(device, weight, x, x[13:])
        assert_array_equal(whole[13:], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("K", WIDE_ROWS)
def test_wide_rows_that_are_cut_into_segments_have_the_bits_of_whole_ones(devices, kind, K):
    """So many tokens are multiplied with one segment of K after the other, the last of them short; one token is not."""
    rng = np.random.default_rng(9)
    weight = drawn(rng, kind, 33, K if QuantType[kind].block_size > 1 else K + 19)
    x = hidden(rng, 40, weight.shape[1])
    expected, *_ = product(devices["generic"], weight, x)
    assert np.isfinite(expected).all()
    for device in devices.values():
        whole, *alone = product(device, weight, x, x[:1], x[17:18], x[39:])
        assert_array_equal(whole, expected)
        assert_array_equal(np.concatenate(alone), expected[[0, 17, 39]])


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_does_not_change_the_bits(threads, device, kind):
    rng = np.random.default_rng(2)
    weight = drawn(rng, kind, 200, width(kind, 2))
    inputs = [hidden(rng, T, weight.shape[1]) for T in (1, 2, 13, 64)]
    for mine, other in zip(product(threads, weight, *inputs), product(device, weight, *inputs), strict=True):
        assert_array_equal(mine, other)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_an_empty_result(device, kind):
    weight = drawn(np.random.default_rng(3), kind, 5, width(kind, 1))
    (out,) = product(device, weight, np.zeros((0, weight.shape[1]), np.float32))
    assert out.shape == (0, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_activation_spoils_its_own_row_only(devices, kind, bad):
    rng = np.random.default_rng(4)
    weight = drawn(rng, kind, 17, width(kind, 2))
    x = hidden(rng, 3, weight.shape[1])
    broken = x.copy()
    broken[1, 5] = bad
    for device in devices.values():
        good, spoiled = product(device, weight, x, broken)
        assert_array_equal(spoiled[[0, 2]], good[[0, 2]])
        assert not np.isfinite(spoiled[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes_as_weights_never_crash(devices, kind):
    """Scales that are NaN, infinite or subnormal included."""
    rng = np.random.default_rng(5)
    K = width(kind, 2)
    clean = drawn(rng, kind, 33, K)
    weight = Weight(clean.type, rng.bytes(len(clean.data)), clean.shape)
    x = hidden(rng, 13, K)
    first, *others = (product(device, weight, x)[0] for device in devices.values())
    for other in others:
        assert_array_equal(np.isfinite(other), np.isfinite(first))
        assert_array_equal(other[np.isfinite(first)], first[np.isfinite(first)])


SCALE_AT = {kind: at for kind, (at, _, _) in RANDOM_BLOCKS.items() if at is not None}
SCALE_AT |= {"Q4_0": 0, "Q4_1": 0, "Q5_0": 0, "Q5_1": 0, "Q8_0": 0, "TQ1_0": 52, "TQ2_0": 64}


@pytest.mark.parametrize("kind", SCALE_AT)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_scale_spoils_its_own_column_only(devices, kind, bad):
    rng = np.random.default_rng(7)
    weight = drawn(rng, kind, 17, width(kind, 2))
    at = 3 * len(weight.data) // 17 + SCALE_AT[kind]
    data = weight.data[:at] + np.array(bad, np.float16).tobytes() + weight.data[at + 2 :]
    x = hidden(rng, 3, weight.shape[1])
    for device in devices.values():
        (good,), (spoiled,) = product(device, weight, x), product(device, Weight(weight.type, data, weight.shape), x)
        assert_array_equal(np.delete(spoiled, 3, axis=1), np.delete(good, 3, axis=1))
        assert not np.isfinite(spoiled[:, 3]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_activations_too_small_to_scale_count_as_zero(device, kind):
    weight = drawn(np.random.default_rng(6), kind, 16, width(kind, 1))
    (out,) = product(device, weight, np.full((1, weight.shape[1]), 1e-42, np.float32))
    assert np.abs(out).max() < 1e-38

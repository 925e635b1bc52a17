"""The bits of the ops on rows are equal on every instruction set, alone and in any batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec
from tests.ops.one_op import hidden, plain, ready

FEW = settings(max_examples=15, deadline=None)
widths = st.sampled_from([1, 2, 15, 16, 17, 31, 64, 97, 576])
seeds = st.integers(0, 2**32 - 1)


def chain(D):
    """Every op on rows, one after another, of x [T, D]."""
    ops = Builder("rows")
    x = ops.input("x", ("T", D))
    normed = ops.rms_norm(x, ops.weight(WeightSpec("w", 0, (D,))), eps=1e-5)
    gated = ops.gated(ops.layer_norm(normed, ops.weight(WeightSpec("w", 0, (D,))), eps=1e-5), x, function="silu")
    biased = ops.apply("add_bias", {"x": gated, "bias": ops.weight(WeightSpec("b", 0, (D,)))}, {})
    return ops.program("out", ops.add(biased, normed))


def turned(heads, head_dim, rotary_dim, pairing):
    """RoPE of x [T, heads * head_dim]."""
    ops = Builder("rope")
    x = ops.input("x", ("T", heads * head_dim))
    sizes = {"n_heads": heads, "head_dim": head_dim, "rotary_dim": rotary_dim}
    return ops.program("out", ops.rope(x, ops.positions, None, **sizes, theta=1e4, pairing=pairing))


def of_every_device(devices, program, weights, x, step):
    outs = []
    for device in devices.values():
        with ready(device, program, weights) as run:
            outs.append(np.array(run(x, step)))
    return outs


@FEW
@given(T=st.integers(1, 20), D=widths, seed=seeds)
def test_every_instruction_set_gives_the_same_bits(devices, T, D, seed):
    rng = np.random.default_rng(seed)
    weights = {name: plain(rng.normal(size=D).astype(np.float32)) for name in "wb"}
    first, *others = of_every_device(devices, chain(D), weights, hidden(rng, T, D), Step.of([T], [0]))
    for other in others:
        assert_array_equal(other, first)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-40, 88.5, -88.5, 1e30, -1e30, np.inf, -np.inf, np.nan])
def test_extreme_values_are_the_same_everywhere(devices, value):
    weights = {name: plain(np.ones(3, np.float32)) for name in "wb"}
    x = np.array([[1.0, value, -2.0]], np.float32)
    first, *others = of_every_device(devices, chain(3), weights, x, Step.of([1], [0]))
    for other in others:
        assert_array_equal(other, first)


@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32), (6, 2), (128, 126)])
@pytest.mark.parametrize("position", [0, 1, 1000, 131071])
def test_rope_is_the_same_on_every_instruction_set(devices, pairing, head_dim, rotary_dim, position):
    x = hidden(np.random.default_rng(1), 5, 3 * head_dim)
    program = turned(3, head_dim, rotary_dim, pairing)
    first, *others = of_every_device(devices, program, {}, x, Step.of([5], [position]))
    for other in others:
        assert_array_equal(other, first)


def test_a_row_has_the_same_bits_alone_and_in_any_batch(device):
    rng = np.random.default_rng(2)
    weights = {name: plain(rng.normal(size=97).astype(np.float32)) for name in "wb"}
    x = hidden(rng, 30, 97)
    with ready(device, chain(97), weights) as run:
        whole = np.array(run(x, Step.of([30], [0])))
        for t in range(30):
            assert_array_equal(run(x[t : t + 1], Step.of([1], [t])), whole[t : t + 1])


def test_the_input_may_lie_at_any_address_and_is_not_written(device):
    rng = np.random.default_rng(3)
    weights = {name: plain(np.ones(33, np.float32)) for name in "wb"}
    x = hidden(rng, 4, 33)
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not shifted.flags.aligned
    with ready(device, chain(33), weights) as run:
        expected = np.array(run(x, Step.of([4], [0])))
        assert_array_equal(run(shifted, Step.of([4], [0])), expected)
    assert_array_equal(shifted, x)

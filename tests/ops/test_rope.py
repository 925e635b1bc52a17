"""Laws of ``rope`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.rope import PAIRINGS, ROPE
from tests.ops.one_op import FEW, plain, rows, run_op, seeds
from tests.reference.rope import rope

ATTRS = {
    "n_heads": 3,
    "head_dim": 16,
    "rotary_dim": 16,
    "theta": 1e4,
    "scale": 1.0,
    "ramp_start": -1.0,
    "ramp_end": -1.0,
    "magnitude": 1.0,
    "pairing": "interleaved",
}
FAR = 131_072


def assert_turned(out, x, positions, factors=None, **attrs):
    """An element is off by the tolerance relative to its pair's length, which turning does not change."""
    length = np.abs(x).max(axis=-1, keepdims=True)
    expected = rope(x, positions, factors, **attrs)
    assert np.all(np.abs(out - expected) <= ROPE.rtol * length + ROPE.atol)


@pytest.mark.parametrize("pairing", PAIRINGS)
@FEW
@given(
    T=rows,
    n_heads=st.sampled_from([1, 3, 4, 9]),
    head_dim=st.sampled_from([2, 6, 16, 64, 80, 128]),
    theta=st.sampled_from([1e4, 5e5, 1e6]),
    scale=st.sampled_from([1.0, 0.25]),
    ramp=st.sampled_from([(-1.0, -1.0), (1.0, 5.0), (0.0, 0.0), (2.5, 2.5), (0.0, 300.0)]),
    magnitude=st.sampled_from([1.0, 1.3689]),
    with_factors=st.booleans(),
    seed=seeds,
)
def test_agrees_with_reference(
    device, pairing, T, n_heads, head_dim, theta, scale, ramp, magnitude, with_factors, seed
):
    rng = np.random.default_rng(seed)
    rotary_dim = 2 * int(rng.integers(1, head_dim // 2 + 1))
    attrs = {"n_heads": n_heads, "head_dim": head_dim, "rotary_dim": rotary_dim}
    attrs |= {"theta": theta, "scale": scale, "ramp_start": ramp[0], "ramp_end": ramp[1]}
    attrs |= {"magnitude": magnitude, "pairing": pairing}
    x = rng.normal(size=(T, n_heads * head_dim)).astype(np.float32)
    positions = rng.integers(0, FAR, size=T, dtype=np.int32)
    factors = rng.uniform(1, 32, size=rotary_dim // 2).astype(np.float32) if with_factors else None
    arrays = {"x": x} | ({"factors": plain(factors)} if with_factors else {})
    out = run_op(device, "rope", arrays, attrs, Step.of([1] * T, positions))
    assert_turned(out, x, positions, factors, **attrs)


def test_positions_of_several_sequences_count_from_each_start(device):
    x = np.random.default_rng(3).normal(size=(6, 48)).astype(np.float32)
    out = run_op(device, "rope", {"x": x}, ATTRS, Step.of([2, 1, 3], [5, 0, 70]))
    assert_turned(out, x, np.array([5, 6, 0, 70, 71, 72], np.int32), **ATTRS)


def test_position_zero_changes_nothing(device):
    x = np.random.default_rng(4).normal(size=(1, 48)).astype(np.float32)
    assert_array_equal(run_op(device, "rope", {"x": x}, ATTRS), x)


def test_what_lies_beyond_rotary_dim_is_copied(device):
    x = np.random.default_rng(5).normal(size=(4, 48)).astype(np.float32)
    out = run_op(device, "rope", {"x": x}, ATTRS | {"rotary_dim": 6})
    assert_array_equal(out.reshape(4, 3, 16)[..., 6:], x.reshape(4, 3, 16)[..., 6:])


@pytest.mark.parametrize("rotary_dim", [3, 18])
def test_an_impossible_rotary_dim_is_named(rotary_dim):
    with pytest.raises(OpError, match=f"rope: rotary_dim={rotary_dim} is not an even number up to head_dim=16"):
        ROPE.infer({"x": ("T", 48), "positions": ("T",)}, ATTRS | {"rotary_dim": rotary_dim})


def test_factors_of_another_length_are_named():
    with pytest.raises(OpError, match="P=7, expected rotary_dim/2=8"):
        ROPE.infer({"x": ("T", 48), "positions": ("T",), "factors": (7,)}, ATTRS)


def test_rows_of_another_width_are_named():
    with pytest.raises(ShapeError, match=r"rope\.x: H\*E=40, but H\*E=48 elsewhere"):
        ROPE.infer({"x": ("T", 40), "positions": ("T",)}, ATTRS)

"""Laws of ``take_of_heads`` and ``join_heads`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.join_heads import JOIN_HEADS
from ollama_zmq.ops.take_of_heads import TAKE_OF_HEADS
from tests.ops.one_op import FEW, rows, run_op, seeds

sizes = st.sampled_from([1, 3, 16, 37])


@FEW
@given(T=rows, H=st.sampled_from([1, 2, 7]), A=sizes, B=sizes, seed=seeds)
def test_what_is_joined_can_be_taken_apart(device, T, H, A, B, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(T, H * size)).astype(np.float32) for size in (A, B))
    joined = run_op(device, "join_heads", {"a": a, "b": b}, {"n_heads": H, "head_dim": A + B})
    assert_array_equal(joined.reshape(T, H, A + B), np.concatenate([a.reshape(T, H, A), b.reshape(T, H, B)], axis=2))
    assert_array_equal(run_op(device, "take_of_heads", {"x": joined}, {"n_heads": H, "start": 0, "size": A}), a)
    assert_array_equal(run_op(device, "take_of_heads", {"x": joined}, {"n_heads": H, "start": A, "size": B}), b)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "named"),
    [
        (TAKE_OF_HEADS, {"x": ("T", 10)}, {"n_heads": 3, "start": 0, "size": 1}, "D=10 is not a multiple of n_heads=3"),
        (
            TAKE_OF_HEADS,
            {"x": ("T", 10)},
            {"n_heads": 2, "start": 3, "size": 3},
            r"start\+size=6 is more than a head's 5",
        ),
        (JOIN_HEADS, {"a": ("T", 4), "b": ("T", 3)}, {"n_heads": 2, "head_dim": 3}, "b: its 3 numbers"),
        (JOIN_HEADS, {"a": ("T", 4), "b": ("T", 2)}, {"n_heads": 2, "head_dim": 4}, r"6 numbers, expected .*=8"),
    ],
)
def test_heads_that_do_not_fit_are_named(op, shapes, attrs, named):
    with pytest.raises((ShapeError, OpError), match=named):
        op.infer(shapes, attrs)

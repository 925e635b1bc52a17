"""Laws of the sums, products and limits that look at one number at a time, on every device."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.registry import OPS
from tests.ops.one_op import FEW, drawn, hidden, plain, rows, run_op, seeds, widths


def assert_close(out, expected, name):
    assert_allclose(out, expected, rtol=OPS[name].rtol, atol=OPS[name].atol)


@FEW
@given(T=rows, F=widths, E=st.sampled_from([1, 1, 3, 16, 33]), seed=seeds)
def test_a_product_agrees_with_float64(device, T, F, E, seed):
    """A number of the narrower stands for E of the other."""
    rng = np.random.default_rng(seed)
    a, b = hidden(rng, T, F), hidden(rng, T, F * E)
    out = run_op(device, "mul", {"a": a, "b": b}, {"head_dim": E})
    assert_close(out, np.repeat(a, E, axis=1).astype(np.float64) * b, "mul")


@FEW
@given(T=rows, D=widths, one=st.booleans(), seed=seeds)
def test_a_weight_multiplies_each_channel_or_all(device, T, D, one, seed):
    rng = np.random.default_rng(seed)
    x, weight = hidden(rng, T, D), rng.normal(size=1 if one else D).astype(np.float32)
    out = run_op(device, "mul_weight", {"x": x, "weight": plain(weight)})
    assert_close(out, np.multiply(x, weight, dtype=np.float64), "mul_weight")


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_weight_of_half_precision_is_widened(device, kind):
    rng = np.random.default_rng(1)
    x, matrix = hidden(rng, 3, 33), drawn(rng, kind, 1, 33)
    weight = type(matrix)(matrix.type, matrix.data, (33,))
    assert_close(run_op(device, "mul_weight", {"x": x, "weight": weight}), x * weight.values, "mul_weight")


@FEW
@given(T=rows, D=widths, by=st.sampled_from([0.0, -1.5, 0.1, 40.0]), seed=seeds)
def test_scale_agrees_with_float64(device, T, D, by, seed):
    x = hidden(np.random.default_rng(seed), T, D)
    assert_close(run_op(device, "scale", {"x": x}, {"by": by}), x.astype(np.float64) * by, "scale")


@FEW
@given(T=rows, D=widths, limit=st.sampled_from([0.25, 8.0]), seed=seeds)
def test_nothing_is_beyond_a_limit_and_the_rest_as_it_was(device, T, D, limit, seed):
    x = hidden(np.random.default_rng(seed), T, D)
    assert_array_equal(run_op(device, "clamp", {"x": x}, {"limit": limit}), np.clip(x, -limit, limit))


@FEW
@given(T=rows, D=widths, cap=st.sampled_from([1.0, 30.0]), seed=seeds)
def test_softcap_agrees_with_its_formula(device, T, D, cap, seed):
    x = hidden(np.random.default_rng(seed), T, D)
    expected = [[cap * math.tanh(float(v) / cap) for v in row] for row in x]
    assert_close(run_op(device, "softcap", {"x": x}, {"cap": cap}), expected, "softcap")


def test_small_numbers_pass_a_softcap_unchanged(device):
    """The difference of two exponentials would lose them."""
    x = np.array([[1e-6, -1e-6, 1e-12, 0]], np.float32)
    assert_allclose(run_op(device, "softcap", {"x": x}, {"cap": 30.0}), x, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "attrs"), [("clamp", {"limit": 2.0}), ("softcap", {"cap": 2.0})])
def test_a_limit_keeps_what_is_no_number_and_ends_what_has_no_end(device, name, attrs):
    x = np.array([[np.nan, np.inf, -np.inf]], np.float32)
    assert_array_equal(run_op(device, name, {"x": x}, attrs), np.array([[np.nan, 2, -2]], np.float32))


@FEW
@given(
    T=rows,
    beta=st.sampled_from([0.1, 1.0]),
    length=st.sampled_from([1.0, 16.0, 8192.0]),
    offset=st.sampled_from([0.0, 1.0]),
    seed=seeds,
)
def test_a_query_grows_with_its_position(device, T, beta, length, offset, seed):
    rng = np.random.default_rng(seed)
    x, positions = hidden(rng, T, 17), rng.integers(0, 1 << 20, size=T, dtype=np.int32)
    attrs = {"beta": beta, "length": length, "offset": offset}
    out = run_op(device, "scale_by_position", {"x": x}, attrs, Step.of([1] * T, positions))
    grown = [1 + beta * math.log1p((int(p) + int(offset)) // int(length)) for p in positions]
    assert_close(out, x * np.array(grown)[:, None], "scale_by_position")


def test_a_query_does_not_grow_before_the_first_step(device):
    x = hidden(np.random.default_rng(2), 8, 5)
    attrs = {"beta": 0.1, "length": 8.0, "offset": 0.0}
    assert_array_equal(run_op(device, "scale_by_position", {"x": x}, attrs), x)


@FEW
@given(T=rows, H=st.sampled_from([1, 3]), E=widths, seed=seeds)
def test_each_head_has_the_length_one(device, T, H, E, seed):
    x = hidden(np.random.default_rng(seed), T, H * E)
    out = run_op(device, "l2_norm", {"x": x}, {"eps": 1e-12, "head_dim": E})
    heads = x.astype(np.float64).reshape(T, H, E)
    assert_close(out, (heads / np.linalg.norm(heads, axis=2, keepdims=True)).reshape(T, H * E), "l2_norm")


def test_a_row_shorter_than_eps_is_divided_by_eps(device):
    x = np.array([[3e-4, 4e-4, 0, 0]], np.float32)
    out = run_op(device, "l2_norm", {"x": x}, {"eps": 1e-2, "head_dim": 2})
    assert_allclose(out, x / 1e-2, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shapes", "attrs", "error", "complaint"),
    [
        ("mul", {"a": ("T", 4), "b": ("T", 3)}, {"head_dim": 1}, ShapeError, r"mul\.b: F\*E=3, but F\*E=4"),
        ("mul_weight", {"x": ("T", 4), "weight": (3,)}, {}, OpError, "weight: P=3, expected D=4 or 1"),
        ("clamp", {"x": ("T", 4)}, {"limit": 0.0}, OpError, r"clamp\.limit=0.0 is outside"),
        ("clamp", {"x": ("T", 4)}, {"limit": -1.0}, OpError, r"clamp\.limit=-1.0 is outside"),
        ("softcap", {"x": ("T", 4)}, {"cap": 0.0}, OpError, r"softcap\.cap=0.0 is outside"),
        ("scale", {"x": ("T", 4)}, {"by": float("inf")}, OpError, r"scale\.by=inf is outside"),
        ("l2_norm", {"x": ("T", 4)}, {"eps": 0.0, "head_dim": 3}, OpError, "D=4 is no multiple of head_dim=3"),
        (
            "scale_by_position",
            {"x": ("T", 4), "positions": ("T",)},
            {"beta": 0.1, "length": 0.0, "offset": 0.0},
            OpError,
            r"scale_by_position\.length=0.0 is outside",
        ),
        (
            "swiglu_clamped",
            {"gate": ("T", 4), "up": ("T", 4)},
            {"alpha": 1.0, "limit": 0.0},
            OpError,
            r"swiglu_clamped\.limit=0.0 is outside",
        ),
    ],
)
def test_what_does_not_fit_is_named(name, shapes, attrs, error, complaint):
    with pytest.raises(error, match=complaint):
        OPS[name].infer(shapes, attrs)

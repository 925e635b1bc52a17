"""Laws of the activation functions, with a gate and without, on every device."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.activation import FUNCTIONS
from ollama_zmq.ops.builder import Builder, Value
from ollama_zmq.ops.registry import OPS
from tests.ops.one_op import FEW, rows, run_op, seeds, widths

FAR = np.array([[-1e30, -1e4, -200, -90, -30, -8, -1e-30, -0.0, 0, 1e-30, 8, 30, 90, 200, 1e4]], np.float32)


def silu(x):
    return x * 0.5 * (1 + math.tanh(x / 2))


def gelu_tanh(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def sigmoid(x):
    return 0.5 * (1 + math.tanh(x / 2))


def softplus(x):
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def relu(x):
    return max(x, 0.0)


def relu2(x):
    return max(x, 0.0) * max(x, 0.0)


FORMULAS = {f.__name__: f for f in (silu, gelu_tanh, gelu_erf, sigmoid, softplus, relu, relu2)}


def of_each(formula, *arrays):
    """What a formula of plain numbers makes of each number of arrays."""
    return np.vectorize(formula, otypes=[np.float64])(*(array.astype(np.float64) for array in arrays))


def assert_close(out, expected, name):
    assert_allclose(out, expected, rtol=OPS[name].rtol, atol=OPS[name].atol)


def test_every_function_has_a_formula_here():
    assert tuple(FORMULAS) == FUNCTIONS


@pytest.mark.parametrize("function", FUNCTIONS)
@FEW
@given(T=rows, D=widths, seed=seeds)
def test_an_activation_agrees_with_its_formula(device, function, T, D, seed):
    x = np.random.default_rng(seed).normal(0, 4, size=(T, D)).astype(np.float32)
    out = run_op(device, "activation", {"x": x}, {"function": function})
    assert_close(out, of_each(FORMULAS[function], x), "activation")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_far_from_zero_nothing_breaks(device, function):
    x = FAR[:, 1:] if function in ("gelu_tanh", "relu2") else FAR
    out = run_op(device, "activation", {"x": x}, {"function": function})
    assert_close(out, of_each(FORMULAS[function], x), "activation")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_number_that_is_none_stays_none(device, function):
    x = np.array([[1, np.nan, -1]], np.float32)
    out = run_op(device, "activation", {"x": x}, {"function": function})
    assert_array_equal(np.isnan(out), np.isnan(x))


@pytest.mark.parametrize("function", FUNCTIONS)
@FEW
@given(T=rows, F=widths, E=st.sampled_from([1, 1, 2, 5, 16, 33]), seed=seeds)
def test_a_gate_agrees_with_its_formula(device, function, T, F, E, seed):
    """A number of the gate stands for E of what passes."""
    rng = np.random.default_rng(seed)
    gate, up = (rng.normal(0, 4, size=(T, width)).astype(np.float32) for width in (F, F * E))
    out = run_op(device, "gated", {"gate": gate, "up": up}, {"function": function, "head_dim": E})
    bound = OPS["gated"]
    expected = of_each(FORMULAS[function], np.repeat(gate, E, axis=1)) * up
    assert np.all(np.abs(out - expected) <= bound.rtol * np.abs(expected) + bound.atol * (1 + np.abs(up)))


def gate_of(gate, up):
    """What a Builder makes of a gate and what passes, of these widths."""
    ops = Builder("gates")
    return ops.gated(ops.input("gate", ("T", gate)), Value("up", ("T", up)), function="sigmoid")


def test_a_builder_finds_from_the_widths_how_much_a_gate_stands_for():
    assert gate_of(4, 24).shape == ("T", 24)


@pytest.mark.parametrize(("gate", "up"), [(4, 6), (6, 4), (4, 3)])
def test_a_gate_that_does_not_fit_is_named(gate, up):
    with pytest.raises(ShapeError, match=rf"gated\.up: F\*E={up}, but F\*E="):
        gate_of(gate, up)


def test_an_unknown_function_is_named():
    with pytest.raises(OpError, match=r"activation\.function='swish', expected one of silu, gelu_tanh"):
        OPS["activation"].infer({"x": ("T", 4)}, {"function": "swish"})


@FEW
@given(T=rows, F=widths, limit=st.sampled_from([0.5, 7.0]), seed=seeds)
def test_a_clamped_swiglu_agrees_with_its_formula(device, T, F, limit, seed):
    rng = np.random.default_rng(seed)
    gate, up = (rng.normal(0, 6, size=(T, F)).astype(np.float32) for _ in range(2))

    def formula(g, u):
        g, u = min(g, limit), min(max(u, -limit), limit)
        return g * sigmoid(1.702 * g) * (u + 1)

    out = run_op(device, "swiglu_clamped", {"gate": gate, "up": up}, {"alpha": 1.702, "limit": limit})
    assert_close(out, of_each(formula, gate, up), "swiglu_clamped")


@FEW
@given(T=rows, D=widths, seed=seeds)
def test_xielu_agrees_with_its_formula(device, T, D, seed):
    x = np.random.default_rng(seed).normal(0, 3, size=(T, D)).astype(np.float32)
    attrs = {"alpha_p": 0.8, "alpha_n": 1.25, "beta": 0.5, "eps": -1e-6}

    def formula(v):
        if v > 0:
            return 0.8 * v * v + 0.5 * v
        return 1.25 * (math.expm1(min(v, -1e-6)) - v) + 0.5 * v

    bound = OPS["xielu"]
    expected = of_each(formula, x)
    out = run_op(device, "xielu", {"x": x}, attrs)
    assert np.all(np.abs(out - expected) <= bound.rtol * (np.abs(expected) + np.abs(x)) + bound.atol)

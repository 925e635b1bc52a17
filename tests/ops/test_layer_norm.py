"""Laws of ``layer_norm`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.errors import OpError
from ollama_zmq.ops.layer_norm import LAYER_NORM
from tests.ops.one_op import FEW, hidden, plain, rows, run_op, seeds, widths
from tests.reference.layer_norm import layer_norm

EPS = 1e-5
heads = st.sampled_from([1, 3])


def normed(device, x, weight=None, bias=None, *, head_dim=None):
    arrays = {name: plain(vector) for name, vector in (("weight", weight), ("bias", bias)) if vector is not None}
    return run_op(device, "layer_norm", {"x": x} | arrays, {"eps": EPS, "head_dim": head_dim or x.shape[1]})


def assert_close(out, expected, x, head_dim):
    """A row is off by the tolerance relative to its largest number, and by what rounding a head's mean costs."""
    heads = x.astype(np.float64).reshape(len(x), -1, head_dim)
    means = np.abs(heads).max(axis=2) / np.sqrt(heads.var(axis=2) + EPS)
    rounded = np.finfo(np.float32).eps * np.repeat(means, head_dim, axis=1)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(out - expected) <= LAYER_NORM.atol + LAYER_NORM.rtol * scale + 2 * rounded)


@FEW
@given(T=rows, H=heads, E=widths, weighted=st.booleans(), biased=st.booleans(), whole=st.booleans(), seed=seeds)
def test_agrees_with_reference(device, T, H, E, weighted, biased, whole, seed):
    rng = np.random.default_rng(seed)
    x = hidden(rng, T, H * E)
    weight, bias = (
        rng.normal(1, 0.1, size=H * E if whole else E).astype(np.float32) if there else None
        for there in (weighted, biased)
    )
    out = normed(device, x, weight, bias, head_dim=E)
    assert_close(out, layer_norm(x, weight, bias, eps=EPS, head_dim=E), x, E)


def test_a_mean_that_is_large_beside_the_spread_loses_little(device):
    """The variance of squares less the square of the mean would lose everything."""
    rng = np.random.default_rng(1)
    x = (1000 + rng.normal(size=(2, 4096))).astype(np.float32)
    assert_allclose(normed(device, x), layer_norm(x, eps=EPS), rtol=1e-3, atol=1e-3)


def test_a_row_of_equal_values_is_the_bias(device):
    x, bias = np.full((2, 48), 0.5, np.float32), np.arange(48, dtype=np.float32)
    assert_array_equal(normed(device, x, np.ones(48, np.float32)), np.zeros((2, 48)))
    assert_array_equal(normed(device, x, None, bias), np.stack([bias, bias]))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_vector_that_does_not_fit_is_named(name):
    with pytest.raises(OpError, match="layer_norm: a vector of 3 numbers, expected head_dim=2 or D=4"):
        LAYER_NORM.infer({"x": ("T", 4), name: (3,)}, {"eps": EPS, "head_dim": 2})


def test_an_impossible_eps_is_named():
    with pytest.raises(OpError, match=r"layer_norm\.eps="):
        LAYER_NORM.infer({"x": ("T", 4), "weight": (4,)}, {"eps": -1e-9, "head_dim": 4})

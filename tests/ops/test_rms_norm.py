"""Laws of ``rms_norm`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.errors import OpError
from ollama_zmq.ops.rms_norm import RMS_NORM
from tests.ops.one_op import FEW, hidden, plain, rows, run_op, seeds, widths
from tests.reference.rms_norm import rms_norm

EPS = 1e-5
heads = st.sampled_from([1, 2, 3, 8])
vectors = st.sampled_from(["of the row", "of a head", "absent"])


def normed(device, x, weight=None, *, eps=EPS, head_dim=None):
    arrays = {"x": x} | ({} if weight is None else {"weight": plain(weight)})
    return run_op(device, "rms_norm", arrays, {"eps": eps, "head_dim": head_dim or x.shape[1]})


@FEW
@given(T=rows, H=heads, E=widths, vector=vectors, seed=seeds)
def test_agrees_with_reference(device, T, H, E, vector, seed):
    rng = np.random.default_rng(seed)
    size = {"of the row": H * E, "of a head": E, "absent": 0}[vector]
    x, weight = hidden(rng, T, H * E), rng.normal(1, 0.1, size=size).astype(np.float32) if size else None
    expected = rms_norm(x, weight, eps=EPS, head_dim=E)
    assert_allclose(normed(device, x, weight, head_dim=E), expected, rtol=RMS_NORM.rtol, atol=RMS_NORM.atol)


def test_a_long_row_of_equal_values_loses_nothing(device):
    """A sum in one float32 lane would be off by more than the tolerance."""
    x, weight = np.full((1, 8192), 1.1, np.float32), np.ones(8192, np.float32)
    assert_allclose(normed(device, x, weight), rms_norm(x, weight, eps=EPS), rtol=RMS_NORM.rtol, atol=RMS_NORM.atol)


def test_a_row_of_zeros_stays_zero(device):
    x = np.zeros((2, 48), np.float32)
    assert_array_equal(normed(device, x, np.ones(48, np.float32)), x)


def test_eps_matters_where_values_are_small(device):
    x = np.full((1, 64), 1e-3, np.float32)
    assert_allclose(normed(device, x, eps=1e-6), np.full((1, 64), 1 / np.sqrt(2)), rtol=1e-5)


def test_a_head_does_not_depend_on_its_neighbours(device):
    x = hidden(np.random.default_rng(1), 3, 4 * 24)
    alone = np.concatenate([normed(device, x[:, d : d + 24].copy()) for d in range(0, 96, 24)], axis=1)
    assert_array_equal(normed(device, x, head_dim=24), alone)


@pytest.mark.parametrize(
    ("shapes", "head_dim", "complaint"),
    [
        ({"x": ("T", 4), "weight": (3,)}, 4, "a vector of 3 numbers, expected head_dim=4 or D=4"),
        ({"x": ("T", 12), "weight": (6,)}, 4, "a vector of 6 numbers, expected head_dim=4 or D=12"),
        ({"x": ("T", 10)}, 4, "x: D=10 is no multiple of head_dim=4"),
        ({"x": ("T", 4)}, 8, "x: D=4 is no multiple of head_dim=8"),
        ({"x": ("T", 4)}, 0, "head_dim=0 is outside 1"),
    ],
)
def test_heads_and_vectors_that_do_not_fit_are_named(shapes, head_dim, complaint):
    with pytest.raises(OpError, match=complaint):
        RMS_NORM.infer(shapes, {"eps": EPS, "head_dim": head_dim})


@pytest.mark.parametrize("eps", [-1e-9, 1.5, float("nan"), "1", True])
def test_an_impossible_eps_is_named(eps):
    with pytest.raises(OpError, match=r"rms_norm\.eps="):
        RMS_NORM.infer({"x": ("T", 4), "weight": (4,)}, {"eps": eps, "head_dim": 4})

"""Laws of ``rms_norm`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.rms_norm import RMS_NORM
from tests.ops.one_op import FEW, hidden, plain, rows, run_op, seeds, widths
from tests.reference.rms_norm import rms_norm

EPS = 1e-5


@FEW
@given(T=rows, D=widths, seed=seeds)
def test_agrees_with_reference(device, T, D, seed):
    rng = np.random.default_rng(seed)
    x, weight = hidden(rng, T, D), rng.normal(1, 0.1, size=D).astype(np.float32)
    out = run_op(device, "rms_norm", {"x": x, "weight": plain(weight)}, {"eps": EPS})
    assert_allclose(out, rms_norm(x, weight, eps=EPS), rtol=RMS_NORM.rtol, atol=RMS_NORM.atol)


def test_a_long_row_of_equal_values_loses_nothing(device):
    """A sum in one float32 lane would be off by more than the tolerance."""
    x, weight = np.full((1, 8192), 1.1, np.float32), np.ones(8192, np.float32)
    out = run_op(device, "rms_norm", {"x": x, "weight": plain(weight)}, {"eps": EPS})
    assert_allclose(out, rms_norm(x, weight, eps=EPS), rtol=RMS_NORM.rtol, atol=RMS_NORM.atol)


def test_a_row_of_zeros_stays_zero(device):
    x, weight = np.zeros((2, 48), np.float32), np.ones(48, np.float32)
    assert_array_equal(run_op(device, "rms_norm", {"x": x, "weight": plain(weight)}, {"eps": EPS}), x)


def test_eps_matters_where_values_are_small(device):
    x, weight = np.full((1, 64), 1e-3, np.float32), np.ones(64, np.float32)
    out = run_op(device, "rms_norm", {"x": x, "weight": plain(weight)}, {"eps": 1e-6})
    assert_allclose(out, np.full((1, 64), 1 / np.sqrt(2)), rtol=1e-5)


def test_wrong_weight_is_named():
    with pytest.raises(ShapeError, match=r"rms_norm\.weight: D=3, but D=4 elsewhere"):
        RMS_NORM.infer({"x": ("T", 4), "weight": (3,)}, {"eps": EPS})


@pytest.mark.parametrize("eps", [-1e-9, 1.5, float("nan"), "1", True])
def test_an_impossible_eps_is_named(eps):
    with pytest.raises(OpError, match=r"rms_norm\.eps="):
        RMS_NORM.infer({"x": ("T", 4), "weight": (4,)}, {"eps": eps})

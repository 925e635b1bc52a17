"""Laws of ``layer_norm`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.ops.layer_norm import LAYER_NORM
from tests.ops.one_op import FEW, Tables, hidden, plain, ready, rows, run_op, seeds, widths
from tests.reference.layer_norm import layer_norm

EPS = 1e-5


def assert_close(out, expected):
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.all(np.abs(out - expected) <= LAYER_NORM.atol + LAYER_NORM.rtol * scale)


@FEW
@given(T=rows, D=widths, seed=seeds)
def test_agrees_with_reference(device, T, D, seed):
    rng = np.random.default_rng(seed)
    x, weight = hidden(rng, T, D), rng.normal(1, 0.1, size=D).astype(np.float32)
    assert_close(
        run_op(device, "layer_norm", {"x": x, "weight": plain(weight)}, {"eps": EPS}), layer_norm(x, weight, eps=EPS)
    )


def test_a_mean_that_is_large_beside_the_spread_loses_little(device):
    """The variance of squares less the square of the mean would lose everything."""
    rng = np.random.default_rng(1)
    x, weight = (1000 + rng.normal(size=(2, 4096))).astype(np.float32), np.ones(4096, np.float32)
    out = run_op(device, "layer_norm", {"x": x, "weight": plain(weight)}, {"eps": EPS})
    assert_allclose(out, layer_norm(x, weight, eps=EPS), rtol=1e-3, atol=1e-3)


def test_a_row_of_equal_values_is_zero(device):
    x, weight = np.full((2, 48), 0.5, np.float32), np.ones(48, np.float32)
    assert_array_equal(run_op(device, "layer_norm", {"x": x, "weight": plain(weight)}, {"eps": EPS}), np.zeros((2, 48)))


def test_a_bias_is_added_last(device):
    rng = np.random.default_rng(2)
    x, (weight, bias) = hidden(rng, 3, 33), rng.normal(size=(2, 33)).astype(np.float32)
    tables = Tables("layer norm with bias")
    given = (tables.rows("x", x), tables.weight("weight", plain(weight)), tables.weight("bias", plain(bias)))
    with ready(device, tables.ops.program("out", tables.ops.layer_norm(*given, eps=EPS)), tables.weights) as run:
        assert_close(run(np.arange(3, dtype=np.int32), Step.of([3], [0])), layer_norm(x, weight, eps=EPS) + bias)


def test_wrong_weight_is_named():
    with pytest.raises(ShapeError, match=r"layer_norm\.weight: D=3, but D=4 elsewhere"):
        LAYER_NORM.infer({"x": ("T", 4), "weight": (3,)}, {"eps": EPS})


def test_an_impossible_eps_is_named():
    with pytest.raises(OpError, match=r"layer_norm\.eps="):
        LAYER_NORM.infer({"x": ("T", 4), "weight": (4,)}, {"eps": -1e-9})

"""Laws of ``add_bias`` on every device."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from ollama_zmq.errors import ShapeError
from ollama_zmq.ops.add_bias import ADD_BIAS
from tests.ops.one_op import FEW, drawn, hidden, plain, rows, run_op, seeds, widths
from tests.reference.add_bias import add_bias


@FEW
@given(T=rows, N=widths, seed=seeds)
def test_agrees_with_reference(device, T, N, seed):
    rng = np.random.default_rng(seed)
    x, bias = hidden(rng, T, N), rng.normal(size=N).astype(np.float32)
    out = run_op(device, "add_bias", {"x": x, "bias": plain(bias)})
    assert_allclose(out, add_bias(x, bias), rtol=ADD_BIAS.rtol, atol=ADD_BIAS.atol)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_bias_of_half_precision_is_widened(device, kind):
    rng = np.random.default_rng(1)
    x, matrix = hidden(rng, 3, 33), drawn(rng, kind, 1, 33)
    bias = replace(matrix, shape=(33,))
    out = run_op(device, "add_bias", {"x": x, "bias": bias})
    assert_allclose(out, add_bias(x, bias.values), rtol=ADD_BIAS.rtol, atol=ADD_BIAS.atol)


def test_a_longer_bias_is_named():
    with pytest.raises(ShapeError, match=r"add_bias\.bias: N=5, but N=4 elsewhere"):
        ADD_BIAS.infer({"x": ("T", 4), "bias": (5,)}, {})

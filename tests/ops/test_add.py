"""Laws of ``add`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from ollama_zmq.errors import ShapeError
from ollama_zmq.ops.add import ADD
from tests.ops.one_op import FEW, hidden, rows, run_op, seeds, widths
from tests.reference.add import add


@FEW
@given(T=rows, D=widths, seed=seeds)
def test_agrees_with_reference(device, T, D, seed):
    rng = np.random.default_rng(seed)
    a, b = hidden(rng, T, D), hidden(rng, T, D)
    assert_allclose(run_op(device, "add", {"a": a, "b": b}), add(a, b), rtol=ADD.rtol, atol=ADD.atol)


def test_a_shorter_row_is_named():
    with pytest.raises(ShapeError, match=r"add\.b: D=3, but D=4 elsewhere"):
        ADD.infer({"a": ("T", 4), "b": ("T", 3)}, {})

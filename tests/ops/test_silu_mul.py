"""Laws of ``silu_mul`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_allclose

from ollama_zmq.errors import ShapeError
from ollama_zmq.ops.silu_mul import SILU_MUL
from tests.ops.one_op import FEW, rows, run_op, seeds, widths
from tests.reference.silu_mul import silu_mul


@FEW
@given(T=rows, F=widths, seed=seeds)
def test_agrees_with_reference(device, T, F, seed):
    rng = np.random.default_rng(seed)
    gate, up = (rng.normal(0, 4, size=(T, F)).astype(np.float32) for _ in range(2))
    out = run_op(device, "silu_mul", {"gate": gate, "up": up})
    assert_allclose(out, silu_mul(gate, up), rtol=SILU_MUL.rtol, atol=SILU_MUL.atol)


def test_far_from_zero_it_is_zero_or_the_product(device):
    gate = np.array([[-1e4, -200, -90, 0, 90, 200, 1e4]], np.float32)
    out = run_op(device, "silu_mul", {"gate": gate, "up": np.full_like(gate, 2)})
    assert_allclose(out, silu_mul(gate, np.full_like(gate, 2)), rtol=SILU_MUL.rtol, atol=SILU_MUL.atol)


def test_a_shorter_row_is_named():
    with pytest.raises(ShapeError, match=r"silu_mul\.up: F=3, but F=4 elsewhere"):
        SILU_MUL.infer({"gate": ("T", 4), "up": ("T", 3)}, {})

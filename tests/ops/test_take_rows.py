"""Laws of ``take_rows`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import ShapeError
from tests.ops.one_op import FEW, hidden, rows, run_op, seeds, widths
from tests.reference.take_rows import take_rows


@FEW
@given(T=rows, D=widths, seed=seeds)
def test_agrees_with_reference_bit_for_bit(device, T, D, seed):
    rng = np.random.default_rng(seed)
    x = hidden(rng, T, D)
    wanted = rng.integers(0, T, size=int(rng.integers(0, T + 1)))
    out = run_op(device, "take_rows", {"x": x}, step=Step.of([T], [0], rows=wanted))
    assert_array_equal(out, take_rows(x, wanted))


@pytest.mark.parametrize("wanted", [[-1], [3], [0, 1, 2, 0]])
def test_rows_that_are_not_there_are_refused(device, wanted):
    with pytest.raises(ShapeError, match="rows"):
        run_op(device, "take_rows", {"x": np.ones((3, 4), np.float32)}, step=Step.of([3], [0], rows=wanted))

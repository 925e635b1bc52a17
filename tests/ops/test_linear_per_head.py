"""Laws of ``linear_per_head`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.linear_per_head import LINEAR_PER_HEAD
from tests.ops.one_op import FEW, FLOAT_KINDS, Tables, hidden, ready, rows, run_op, seeds
from tests.ops.test_experts import stack
from tests.ops.test_linear import FLOAT_RTOL, SIGMAS
from tests.reference.linear import linear, linear_scale, rounding_error

kinds = st.sampled_from(["F32", "F16", "Q8_0", "Q4_K", "MXFP4"])


@FEW
@given(T=rows, H=st.sampled_from([1, 2, 7, 16]), N=st.sampled_from([1, 16, 37]), kind=kinds, seed=seeds)
def test_each_head_is_a_product_of_its_own(device, T, H, N, kind, seed):
    rng = np.random.default_rng(seed)
    K = max(QuantType[kind].block_size, 19 if kind in FLOAT_KINDS else 0)
    x, weight = hidden(rng, T, H * K), stack(rng, kind, H, N, K)
    out = run_op(device, "linear_per_head", {"x": x, "weight": weight})
    for h, matrix in enumerate(weight.values):
        head = x[:, h * K : (h + 1) * K]
        bound = FLOAT_RTOL * linear_scale(head, matrix)
        if kind not in FLOAT_KINDS:
            bound += SIGMAS * rounding_error(head, matrix, QuantType[kind].block_size)
        assert np.all(np.abs(out[:, h * N : (h + 1) * N] - linear(head, matrix)) <= bound)


def test_two_products_of_the_same_heads_share_a_program(device):
    """The value that comes out of one goes into another, of other sizes, as in latent attention."""
    rng = np.random.default_rng(1)
    x, down, up = hidden(rng, 5, 3 * 32) / 100, stack(rng, "F32", 3, 8, 32), stack(rng, "F32", 3, 32, 8)
    tables = Tables("heads")
    made = tables.ops.linear_per_head(tables.rows("x", x), tables.weight("down", down))
    program = tables.ops.program("out", tables.ops.linear_per_head(made, tables.weight("up", up)))
    expected = np.einsum("hnk,thk->thn", up.values @ down.values, x.reshape(5, 3, 32)).reshape(5, 96)
    with ready(device, program, tables.weights, max_tokens=5) as run:
        out = run(np.arange(5, dtype=np.int32), Step.of([5], [0]))
        assert np.allclose(out, expected, rtol=1e-3, atol=1e-4)
        assert run(np.zeros(0, np.int32), Step.of([], [])).shape == (0, 96)


@pytest.mark.parametrize(
    ("x", "weight", "named"),
    [
        (("T", 48), (2, 8, 32), r"x: W=48, expected H\*K=2\*32"),
        (("T", 32), (8, 32), r"weight: shape \[8, 32\], expected \[H N K\]"),
        (("T", 2050), (1025, 1, 2), "1025 heads, at most 1024"),
    ],
)
def test_heads_that_do_not_fit_are_named(x, weight, named):
    with pytest.raises((ShapeError, OpError), match=named):
        LINEAR_PER_HEAD.infer({"x": x, "weight": weight}, {})

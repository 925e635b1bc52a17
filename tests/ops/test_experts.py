"""Laws of ``route``, ``expert_linear`` and ``expert_sum`` on every device."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.expert_linear import EXPERT_LINEAR
from ollama_zmq.ops.expert_sum import EXPERT_SUM
from ollama_zmq.ops.route import ROUTE
from tests.ops.one_op import FEW, FLOAT_KINDS, Tables, Weight, drawn, hidden, ready, rows, run_op, seeds
from tests.ops.test_linear import FLOAT_RTOL, SIGMAS
from tests.reference.experts import expert_linear, expert_sum, slots
from tests.reference.linear import linear_scale, rounding_error
from tests.reference.route import route

sizes = st.sampled_from([(1, 1), (2, 1), (3, 3), (8, 2), (17, 5), (40, 8)])  # experts, used
kinds = st.sampled_from(["F32", "F16", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL"])


def stack(rng, kind, X, N, K):
    """X matrices [N, K] of random weights in one tensor."""
    return Weight(QuantType[kind], b"".join(drawn(rng, kind, N, K).data for _ in range(X)), (X, N, K))


def routed(rng, T, X, J):
    return route(rng.normal(size=(T, X)), n_used=J, softmax_over="chosen").astype(np.float32)


@pytest.mark.parametrize("softmax_over", ["all", "chosen"])
@FEW
@given(T=rows, sizes=sizes, seed=seeds)
def test_routing_agrees_with_reference(device, softmax_over, T, sizes, seed):
    logits = np.random.default_rng(seed).normal(0, 4, size=(T, sizes[0])).astype(np.float32)
    attrs = {"n_used": sizes[1], "softmax_over": softmax_over}
    out = run_op(device, "route", {"logits": logits}, attrs)
    assert_array_equal(out != 0, route(logits, **attrs) != 0)
    assert_allclose(out, route(logits, **attrs), rtol=ROUTE.rtol, atol=ROUTE.atol)


def test_of_equal_logits_the_lowest_numbers_are_chosen(device):
    logits = np.array([[1, 2, 2, 2, 0], [0, 0, 0, 0, 0]], np.float32)
    out = run_op(device, "route", {"logits": logits}, {"n_used": 2, "softmax_over": "chosen"})
    assert_array_equal(out, [[0, 0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("softmax_over", ["all", "chosen"])
def test_a_broken_logit_spoils_its_own_row_only(device, bad, softmax_over):
    logits = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    attrs = {"n_used": 3, "softmax_over": softmax_over}
    good = run_op(device, "route", {"logits": logits}, attrs)
    logits[1, 17] = bad
    out = run_op(device, "route", {"logits": logits}, attrs)
    assert_array_equal(out[[0, 2]], good[[0, 2]])
    assert np.isnan(out[1]).sum() == 3


@FEW
@given(T=rows, sizes=sizes, N=st.sampled_from([1, 16, 37]), kind=kinds, shared=st.booleans(), seed=seeds)
def test_products_agree_with_reference(device, T, sizes, N, kind, shared, seed):
    rng, (X, J) = np.random.default_rng(seed), sizes
    K = max(QuantType[kind].block_size, 19 if kind in FLOAT_KINDS else 0)
    x, routing, weight = hidden(rng, T, K if shared else J * K), routed(rng, T, X, J), stack(rng, kind, X, N, K)
    out = run_op(device, "expert_linear", {"x": x, "routing": routing, "weight": weight}, {"n_used": J})
    error = np.abs(out - expert_linear(x, routing, weight.values, n_used=J))
    for t, experts in enumerate(slots(routing, J)):
        for j, e in enumerate(experts):
            row = x[t : t + 1] if shared else x[t : t + 1, j * K : (j + 1) * K]
            bound = FLOAT_RTOL * linear_scale(row, weight.values[e])
            if kind not in FLOAT_KINDS:
                bound += SIGMAS * rounding_error(row, weight.values[e], QuantType[kind].block_size)
            assert np.all(error[t, j * N : (j + 1) * N] <= bound)


@FEW
@given(T=rows, sizes=sizes, D=st.sampled_from([1, 15, 16, 64, 97]), seed=seeds)
def test_sums_agree_with_reference(device, T, sizes, D, seed):
    rng, (X, J) = np.random.default_rng(seed), sizes
    x, routing, attrs = rng.normal(size=(T, J * D)).astype(np.float32), routed(rng, T, X, J), {"n_used": J, "width": D}
    out = run_op(device, "expert_sum", {"x": x, "routing": routing}, attrs)
    assert_allclose(out, expert_sum(x, routing, **attrs), rtol=EXPERT_SUM.rtol, atol=EXPERT_SUM.atol)


def test_a_row_that_names_too_few_or_too_many_experts_has_the_lowest(device):
    """No program that is made here does that; one that comes over the wire may."""
    rng = np.random.default_rng(2)
    routing = np.array([[0, 0, 0, 0], [0, 0, 0.5, 0], [1, 2, 3, 4], [0, np.nan, 0, -1]], np.float32)
    x, weight = rng.normal(size=(4, 32)).astype(np.float32), stack(rng, "F32", 4, 5, 32)
    assert slots(routing, 2) == [[0, 1], [2, 0], [0, 1], [1, 3]]
    out = run_op(device, "expert_linear", {"x": x, "routing": routing, "weight": weight}, {"n_used": 2})
    assert_allclose(out, expert_linear(x, routing, weight.values, n_used=2), rtol=1e-4, atol=1e-5)


def test_a_broken_expert_spoils_only_the_rows_that_use_it(device):
    rng = np.random.default_rng(3)
    weight = stack(rng, "F32", 3, 4, 32)
    broken = weight.values.copy()
    broken[1] = np.nan
    spoiled = Weight(weight.type, broken.tobytes(), weight.shape)
    x, routing = rng.normal(size=(3, 32)).astype(np.float32), np.eye(3, dtype=np.float32)
    out = [
        run_op(device, "expert_linear", {"x": x, "routing": routing, "weight": w}, {"n_used": 1})
        for w in (weight, spoiled)
    ]
    assert_array_equal(out[0][[0, 2]], out[1][[0, 2]])
    assert np.isnan(out[1][1]).all()


def test_a_pass_without_rows_is_a_pass(device):
    rng = np.random.default_rng(4)
    tables = Tables("experts")
    routing = tables.ops.route(tables.rows("logits", routed(rng, 3, 4, 2)), n_used=2, softmax_over="chosen")
    weight = tables.weight("w", stack(rng, "Q8_0", 4, 8, 32))
    made = tables.ops.expert_linear(tables.rows("x", hidden(rng, 3, 32)), routing, weight, n_used=2)
    program = tables.ops.program("out", tables.ops.expert_sum(made, routing, n_used=2, width=8))
    with ready(device, program, tables.weights, max_tokens=3) as run:
        assert run(np.zeros(0, np.int32), Step.of([], [])).shape == (0, 8)


WRONG = [
    (ROUTE, {"logits": ("T", 4)}, {"n_used": 5, "softmax_over": "all"}, "n_used=5 of 4 experts"),
    (ROUTE, {"logits": ("T", 1025)}, {"n_used": 2, "softmax_over": "all"}, "1025 experts, at most 1024"),
    (ROUTE, {"logits": ("T", 4)}, {"n_used": 2, "softmax_over": "some"}, r"softmax_over='some'"),
    (EXPERT_SUM, {"x": ("T", 12), "routing": ("T", 8)}, {"n_used": 3, "width": 5}, r"J\*D=12, but J\*D=15"),
]


@pytest.mark.parametrize(("op", "shapes", "attrs", "named"), WRONG)
def test_impossible_numbers_of_experts_are_named(op, shapes, attrs, named):
    with pytest.raises(OpError, match=named):
        op.infer(shapes, attrs)


@pytest.mark.parametrize(
    ("x", "routing", "weight", "named"),
    [
        (("T", 32), ("T", 4), (3, 8, 32), "weight: X=3, but X=4"),
        (("T", 48), ("T", 4), (4, 8, 32), r"x: W=48, expected K=32 or n_used\*K=2\*32"),
        (("T", 32), ("R", 4), (4, 8, 32), "routing: T=R, but T=T"),
        (("T", 32), ("T", 4), (8, 32), r"weight: shape \[8, 32\], expected \[X N K\]"),
    ],
)
def test_experts_that_do_not_fit_are_named(x, routing, weight, named):
    with pytest.raises((ShapeError, OpError), match=named):
        EXPERT_LINEAR.infer({"x": x, "routing": routing, "weight": weight}, {"n_used": 2})

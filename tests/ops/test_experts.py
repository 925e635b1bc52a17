"""Laws of the ops of a mixture of experts on every device: who is chosen, for how much, and what they make."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.errors import OpError, ShapeError
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.choose_experts import CHOOSE_EXPERTS, SCORES
from ollama_zmq.ops.expert_bias import EXPERT_BIAS
from ollama_zmq.ops.expert_linear import EXPERT_LINEAR
from ollama_zmq.ops.expert_shares import EXPERT_SHARES
from ollama_zmq.ops.expert_sum import EXPERT_SUM
from tests.ops.one_op import FEW, FLOAT_KINDS, Tables, Weight, drawn, hidden, plain, ready, rows, run_op, seeds
from tests.ops.test_linear import FLOAT_RTOL, SIGMAS
from tests.reference.experts import expert_bias, expert_linear, expert_sum, slots
from tests.reference.linear import linear_scale, rounding_error
from tests.reference.route import route

sizes = st.sampled_from([(1, 1), (2, 1), (3, 3), (8, 2), (17, 5), (40, 8)])  # experts, used
kinds = st.sampled_from(["F32", "F16", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL"])


def stack(rng, kind, X, N, K):
    """X matrices [N, K] of random weights in one tensor."""
    return Weight(QuantType[kind], b"".join(drawn(rng, kind, N, K).data for _ in range(X)), (X, N, K))


def routed(rng, T, X, J):
    """A choice of J of X experts for each of T rows, as a row of 0 and 1."""
    return np.array([np.isin(np.arange(X), rng.permutation(X)[:J]) for _ in range(T)], np.float32).reshape(T, X)


def choice(device, logits, bias=None, *, n_used, scores="softmax", groups=(1, 1)):
    attrs = {"n_used": n_used, "scores": scores, "n_groups": groups[0], "n_groups_used": groups[1]}
    arrays = {"logits": logits} | ({} if bias is None else {"bias": plain(bias)})
    return run_op(device, "choose_experts", arrays, attrs)


def shares(device, logits, chosen, expert_scale=None, *, n_used, scores="softmax", normalize=1, scale=1.0):
    attrs = {"n_used": n_used, "scores": scores, "normalize": normalize, "scale": scale}
    arrays = {"logits": logits, "chosen": chosen}
    return run_op(
        device, "expert_shares", arrays | ({} if expert_scale is None else {"weight": plain(expert_scale)}), attrs
    )


@pytest.mark.parametrize("scores", SCORES)
@FEW
@given(
    T=rows, sizes=sizes, normalize=st.booleans(), scale=st.sampled_from([1.0, 2.5]), scaled=st.booleans(), seed=seeds
)
def test_routing_agrees_with_reference(device, scores, T, sizes, normalize, scale, scaled, seed):
    rng, (X, J) = np.random.default_rng(seed), sizes
    logits = rng.normal(0, 4, size=(T, X)).astype(np.float32)
    expert_scale = rng.normal(1, 0.2, size=X).astype(np.float32) if scaled else None
    attrs = {"n_used": J, "scores": scores}
    counted = {"normalize": int(normalize), "scale": scale}
    experts, expected = route(logits, None, expert_scale, **attrs, **counted)
    chosen = choice(device, logits, **attrs)
    assert slots(chosen, J) == experts
    assert_array_equal(chosen.sum(axis=1), J)
    out = shares(device, logits, chosen, expert_scale, **attrs, **counted)
    assert_allclose(out, expected, rtol=EXPERT_SHARES.rtol, atol=EXPERT_SHARES.atol)


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (8, 3), (16, 5)])
@FEW
@given(T=rows, biased=st.booleans(), seed=seeds)
def test_bias_and_groups_weigh_in_the_choice(device, scores, groups, T, biased, seed):
    """Marks are steps apart, and no two logits sum to 0, so that no rounding decides."""
    rng, X, J = np.random.default_rng(seed), 32, 5
    logits = np.array([rng.permutation(X) for _ in range(T)], np.float32) / 4 - np.float32(3.9)
    bias = rng.permutation(X).astype(np.float32) / 8 if biased else None
    experts, _ = route(logits, bias, n_used=J, scores=scores, groups=groups)
    assert slots(choice(device, logits, bias, n_used=J, scores=scores, groups=groups), J) == experts


def test_a_bias_does_not_change_a_share(device):
    logits = np.array([[3, 1, -2, 0]], np.float32)
    chosen = choice(device, logits, np.array([-9, 0, 9, 0], np.float32), n_used=2, scores="sigmoid")
    assert_array_equal(chosen, [[0, 1, 1, 0]])
    out = shares(device, logits, chosen, n_used=2, scores="sigmoid", normalize=0)
    assert_allclose(out, 1 / (1 + np.exp([[-1.0, 2.0]])), rtol=1e-6)


def test_of_equal_logits_the_lowest_numbers_are_chosen(device):
    logits = np.array([[1, 2, 2, 2, 0], [0, 0, 0, 0, 0]], np.float32)
    assert_array_equal(choice(device, logits, n_used=2), [[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]])


def test_an_expert_whose_share_is_0_stays_chosen(device):
    """Its rows stand where its own slot is, though nothing is left of them in the sum."""
    logits = np.array([[-300, 0, -400, -200], [-150, -200, -100, -120]], np.float32)
    chosen = choice(device, logits, n_used=3, scores="sigmoid")
    assert_array_equal(chosen, [[1, 1, 0, 1], [1, 0, 1, 1]])
    out = shares(device, logits, chosen, n_used=3, scores="sigmoid")
    assert_allclose(out[0], [0, 1, 0], atol=1e-30)
    assert np.all((out[1] >= 0) & (out[1] < 1e-30))
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 12)
    assert_allclose(run_op(device, "expert_sum", {"x": x, "shares": out}, {"n_used": 3, "width": 4})[0], x[0, 4:8])


@pytest.mark.parametrize("scores", SCORES)
def test_experts_without_a_number_are_chosen_last(device, scores):
    logits = np.array([[np.nan, 1, np.nan, 0], [np.nan] * 4], np.float32)
    bias = np.array([0, 0, 0, 0], np.float32)
    assert_array_equal(choice(device, logits, n_used=3, scores=scores), [[1, 1, 0, 1], [1, 1, 1, 0]])
    expected = [[1, 1, 1, 0]] * 2 if scores == "softmax" else [[1, 1, 0, 1], [1, 1, 1, 0]]
    assert_array_equal(choice(device, logits, bias, n_used=3, scores=scores), expected)


def test_a_group_without_numbers_is_chosen_last(device):
    logits = np.array([[np.nan, 9, np.nan, -1, -2, -3, 8, np.nan]], np.float32)
    chosen = choice(device, logits, n_used=2, scores="sigmoid", groups=(4, 1))
    assert_array_equal(chosen, [[0, 0, 0, 0, 1, 1, 0, 0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("normalize", [0, 1])
def test_a_broken_logit_spoils_its_own_row_only(device, bad, normalize):
    logits = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)
    chosen = choice(device, logits, n_used=3)
    good = shares(device, logits, chosen, n_used=3, normalize=normalize)
    logits[1, 17] = bad
    out = shares(device, logits, chosen, n_used=3, normalize=normalize)
    assert_array_equal(out[[0, 2]], good[[0, 2]])
    assert np.isnan(out[1]).all()


@FEW
@given(T=rows, sizes=sizes, N=st.sampled_from([1, 16, 37]), kind=kinds, shared=st.booleans(), seed=seeds)
def test_products_agree_with_reference(device, T, sizes, N, kind, shared, seed):
    rng, (X, J) = np.random.default_rng(seed), sizes
    K = max(QuantType[kind].block_size, 19 if kind in FLOAT_KINDS else 0)
    x, chosen, weight = hidden(rng, T, K if shared else J * K), routed(rng, T, X, J), stack(rng, kind, X, N, K)
    out = run_op(device, "expert_linear", {"x": x, "chosen": chosen, "weight": weight}, {"n_used": J})
    error = np.abs(out - expert_linear(x, chosen, weight.values, n_used=J))
    for t, experts in enumerate(slots(chosen, J)):
        for j, e in enumerate(experts):
            row = x[t : t + 1] if shared else x[t : t + 1, j * K : (j + 1) * K]
            bound = FLOAT_RTOL * linear_scale(row, weight.values[e])
            if kind not in FLOAT_KINDS:
                bound += SIGMAS * rounding_error(row, weight.values[e], QuantType[kind].block_size)
            assert np.all(error[t, j * N : (j + 1) * N] <= bound)


@FEW
@given(T=rows, sizes=sizes, D=st.sampled_from([1, 15, 16, 64, 97]), seed=seeds)
def test_sums_agree_with_reference(device, T, sizes, D, seed):
    rng, J = np.random.default_rng(seed), sizes[1]
    x, shares = (rng.normal(size=(T, width)).astype(np.float32) for width in (J * D, J))
    out = run_op(device, "expert_sum", {"x": x, "shares": shares}, {"n_used": J, "width": D})
    bound = np.abs(x).max(axis=1, keepdims=True) * np.abs(shares).sum(axis=1, keepdims=True)
    assert np.all(np.abs(out - expert_sum(x, shares)) <= EXPERT_SUM.rtol * bound + EXPERT_SUM.atol)


@FEW
@given(T=rows, sizes=sizes, N=st.sampled_from([1, 16, 37]), kind=st.sampled_from(FLOAT_KINDS), seed=seeds)
def test_each_slot_has_the_bias_of_its_expert(device, T, sizes, N, kind, seed):
    rng, (X, J) = np.random.default_rng(seed), sizes
    x, chosen, bias = hidden(rng, T, J * N), routed(rng, T, X, J), drawn(rng, kind, X, N)
    out = run_op(device, "expert_bias", {"x": x, "chosen": chosen, "bias": bias}, {"n_used": J})
    expected = expert_bias(x, chosen, bias.values, n_used=J)
    assert_allclose(out, expected, rtol=EXPERT_BIAS.rtol, atol=EXPERT_BIAS.atol)


def test_a_row_that_names_too_few_or_too_many_experts_has_the_lowest(device):
    """No program that is made here does that; one that comes over the wire may."""
    rng = np.random.default_rng(2)
    chosen = np.array([[0, 0, 0, 0], [0, 0, 0.5, 0], [1, 2, 3, 4], [0, np.nan, 0, -1]], np.float32)
    x, weight = rng.normal(size=(4, 32)).astype(np.float32), stack(rng, "F32", 4, 5, 32)
    assert slots(chosen, 2) == [[0, 1], [2, 0], [0, 1], [1, 3]]
    out = run_op(device, "expert_linear", {"x": x, "chosen": chosen, "weight": weight}, {"n_used": 2})
    assert_allclose(out, expert_linear(x, chosen, weight.values, n_used=2), rtol=1e-4, atol=1e-5)


def test_a_broken_expert_spoils_only_the_rows_that_use_it(device):
    rng = np.random.default_rng(3)
    weight = stack(rng, "F32", 3, 4, 32)
    broken = weight.values.copy()
    broken[1] = np.nan
    spoiled = Weight(weight.type, broken.tobytes(), weight.shape)
    x, chosen = rng.normal(size=(3, 32)).astype(np.float32), np.eye(3, dtype=np.float32)
    out = [
        run_op(device, "expert_linear", {"x": x, "chosen": chosen, "weight": w}, {"n_used": 1})
        for w in (weight, spoiled)
    ]
    assert_array_equal(out[0][[0, 2]], out[1][[0, 2]])
    assert np.isnan(out[1][1]).all()


def test_a_pass_without_rows_is_a_pass(device):
    rng = np.random.default_rng(4)
    tables = Tables("experts")
    chosen, shares = tables.ops.route(tables.rows("logits", hidden(rng, 3, 4)), n_used=2)
    weight = tables.weight("w", stack(rng, "Q8_0", 4, 8, 32))
    made = tables.ops.expert_linear(tables.rows("x", hidden(rng, 3, 32)), chosen, weight, n_used=2)
    program = tables.ops.program("out", tables.ops.expert_sum(made, shares))
    with ready(device, program, tables.weights, max_tokens=3) as run:
        assert run(np.zeros(0, np.int32), Step.of([], [])).shape == (0, 8)


CHOICE = {"n_used": 2, "scores": "softmax", "n_groups": 1, "n_groups_used": 1}
SHARES = {"n_used": 3, "scores": "softmax", "normalize": 1, "scale": 1.0}
WRONG = [
    (CHOOSE_EXPERTS, {"logits": ("T", 4)}, CHOICE | {"n_used": 5}, "n_used=5 of 4 experts"),
    (CHOOSE_EXPERTS, {"logits": ("T", 1025)}, CHOICE, "1025 experts, at most 1024"),
    (CHOOSE_EXPERTS, {"logits": ("T", 4)}, CHOICE | {"scores": "some"}, r"scores='some'"),
    (CHOOSE_EXPERTS, {"logits": ("T", 4), "bias": (3,)}, CHOICE, "bias: X=3, but X=4"),
    (CHOOSE_EXPERTS, {"logits": ("T", 8)}, CHOICE | {"n_groups": 3}, "8 experts in n_groups=3 groups of equal size"),
    (CHOOSE_EXPERTS, {"logits": ("T", 8)}, CHOICE | {"n_groups_used": 2}, "n_groups_used=2 of n_groups=1"),
    (
        CHOOSE_EXPERTS,
        {"logits": ("T", 8)},
        CHOICE | {"n_groups": 8},
        "n_used=2 of the 1 experts of n_groups_used=1 groups",
    ),
    (EXPERT_SHARES, {"logits": ("T", 8), "chosen": ("T", 4)}, SHARES, "chosen: X=4, but X=8"),
    (EXPERT_SHARES, {"logits": ("T", 2), "chosen": ("T", 2)}, SHARES, "n_used=3 of 2 experts"),
    (EXPERT_SHARES, {"logits": ("T", 4), "chosen": ("T", 4)}, SHARES | {"normalize": 2}, "normalize=2 is outside 0..1"),
    (EXPERT_SUM, {"x": ("T", 12), "shares": ("T", 3)}, {"n_used": 3, "width": 5}, r"J\*D=12, but J\*D=15"),
    (EXPERT_SUM, {"x": ("T", 12), "shares": ("T", 2)}, {"n_used": 3, "width": 4}, "shares: J=2, but J=3"),
    (
        EXPERT_BIAS,
        {"x": ("T", 12), "chosen": ("T", 8), "bias": (8, 5)},
        {"n_used": 3},
        r"W=12, expected n_used\*N=3\*5",
    ),
]


@pytest.mark.parametrize(("op", "shapes", "attrs", "named"), WRONG)
def test_impossible_numbers_of_experts_are_named(op, shapes, attrs, named):
    with pytest.raises(OpError, match=named):
        op.infer(shapes, attrs)


@pytest.mark.parametrize(
    ("x", "chosen", "weight", "named"),
    [
        (("T", 32), ("T", 4), (3, 8, 32), "weight: X=3, but X=4"),
        (("T", 48), ("T", 4), (4, 8, 32), r"x: W=48, expected K=32 or n_used\*K=2\*32"),
        (("T", 32), ("R", 4), (4, 8, 32), "chosen: T=R, but T=T"),
        (("T", 32), ("T", 4), (8, 32), r"weight: shape \[8, 32\], expected \[X N K\]"),
    ],
)
def test_experts_that_do_not_fit_are_named(x, chosen, weight, named):
    with pytest.raises((ShapeError, OpError), match=named):
        EXPERT_LINEAR.infer({"x": x, "chosen": chosen, "weight": weight}, {"n_used": 2})

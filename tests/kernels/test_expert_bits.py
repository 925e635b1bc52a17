"""A feed-forward of experts: bits depend on the row: not on who shares its experts, threads and instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Step
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec
from tests.kernels.test_linear_bits import KINDS
from tests.ops.one_op import drawn, hidden, plain, ready
from tests.ops.test_experts import stack

FEW = settings(max_examples=10, deadline=None)
X, J = 9, 3


def layer(kind, rng, X=X, J=J, F=None):
    """Router, experts of SwiGLU and their sum over x [T, D], and the weights."""
    D = F = F or max(QuantType[kind].block_size, 24)
    weights = {
        "router": drawn(rng, "F32", X, D),
        "balance": plain(rng.normal(size=X)),
        "bias": drawn(rng, "F32", X, F),
        "gate": stack(rng, kind, X, F, D),
        "up": stack(rng, kind, X, F, D),
        "down": stack(rng, kind, X, D, F),
    }
    ops = Builder("experts")
    x = ops.input("x", ("T", D))
    given = {name: ops.weight(WeightSpec(name, weight.type.id, weight.shape)) for name, weight in weights.items()}
    chosen, shares = ops.route(ops.linear(x, given["router"]), given["balance"], n_used=J, scores="sigmoid")
    gate, up = (ops.expert_linear(x, chosen, given[name], given["bias"], n_used=J) for name in ("gate", "up"))
    down = ops.expert_linear(ops.gated(gate, up, function="silu"), chosen, given["down"], n_used=J)
    return ops.program("out", ops.expert_sum(down, shares)), weights, D


def outputs(device, program, weights, *inputs):
    with ready(device, program, weights, max_tokens=64) as run:
        return [run(x, Step.of([len(x)], [0])) for x in inputs]


@pytest.mark.parametrize("kind", KINDS)
def test_every_instruction_set_gives_the_same_bits(devices, kind):
    rng = np.random.default_rng(1)
    program, weights, D = layer(kind, rng)
    inputs = [hidden(rng, T, D) / 100 for T in (1, 21)]
    first, *others = (outputs(device, program, weights, *inputs) for device in devices.values())
    for other in others:
        for mine, expected in zip(other, first, strict=True):
            assert np.isfinite(expected).all()
            assert_array_equal(mine, expected)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
@FEW
@given(cuts=st.lists(st.integers(1, 63), max_size=8, unique=True))
def test_a_row_has_the_same_bits_alone_and_in_any_batch(device, kind, cuts):
    rng = np.random.default_rng(2)
    program, weights, D = layer(kind, rng)
    x = hidden(rng, 64, D) / 100
    whole, *parts = outputs(device, program, weights, x, *np.split(x, sorted(cuts)))
    assert_array_equal(np.concatenate(parts), whole)


def test_the_number_of_threads_does_not_change_the_bits(threads, device):
    rng = np.random.default_rng(3)
    program, weights, D = layer("Q4_0", rng, F=160)
    inputs = [hidden(rng, T, D) / 100 for T in (1, 2, 50)]
    for mine, other in zip(
        outputs(threads, program, weights, *inputs), outputs(device, program, weights, *inputs), strict=True
    ):
        assert_array_equal(mine, other)


@pytest.mark.parametrize(("X", "J"), [(1, 1), (5, 5), (16, 1), (33, 8)])
def test_any_number_of_experts_agrees_between_one_row_and_many(device, X, J):
    rng = np.random.default_rng(4)
    program, weights, D = layer("Q8_0", rng, X=X, J=J)
    x = hidden(rng, 30, D) / 100
    whole, *rows = outputs(device, program, weights, x, *np.split(x, 30))
    assert_array_equal(np.concatenate(rows), whole)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K"])
def test_wide_rows_that_are_cut_into_segments_have_the_bits_of_whole_ones(devices, kind):
    """What a segment of K leaves for the next one waits where an expert's slots stand: rows that are no neighbours."""
    rng = np.random.default_rng(5)
    X, N, K = 2, 17, 14336
    weights = {"router": drawn(rng, "F32", X, K), "w": stack(rng, kind, X, N, K)}
    ops = Builder("experts")
    x = ops.input("x", ("T", K))
    router, w = (ops.weight(WeightSpec(name, weight.type.id, weight.shape)) for name, weight in weights.items())
    program = ops.program("out", ops.expert_linear(x, ops.route(ops.linear(x, router), n_used=1)[0], w, n_used=1))
    rows = hidden(rng, 64, K)
    for device in devices.values():
        whole, *alone = outputs(device, program, weights, rows, *np.split(rows, 64))
        assert np.isfinite(whole).all()
        assert_array_equal(np.concatenate(alone), whole)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "MXFP4"])
def test_heads_have_the_same_bits_in_any_batch_on_every_instruction_set(devices, kind):
    rng = np.random.default_rng(6)
    H, N, K = 5, 17, max(QuantType[kind].block_size, 24)
    weights = {"w": stack(rng, kind, H, N, K)}
    ops = Builder("heads")
    x = ops.input("x", ("T", H * K))
    weight = ops.weight(WeightSpec("w", weights["w"].type.id, (H, N, K)))
    program = ops.program("out", ops.linear_per_head(x, weight))
    rows = hidden(rng, 64, H * K)
    results = []
    for device in devices.values():
        for size in (64, 7, 1):
            parts = outputs(device, program, weights, *(rows[t : t + size] for t in range(0, 64, size)))
            results.append(np.concatenate(parts))
    for result in results:
        assert_array_equal(result, results[0])

"""Laws of ``linear`` on every device and for every tensor type."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_zmq.errors import ModelFileError, ShapeError, UnsupportedOp
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.linear import LINEAR
from ollama_zmq.ops.program import WeightSpec, verify
from tests.ops.one_op import (
    FEW,
    FLOAT_KINDS,
    OPTIONAL_KINDS,
    REQUIRED_KINDS,
    columns,
    drawn,
    hidden,
    rows,
    run_op,
    seeds,
    supported_or_refused,
)
from tests.reference.linear import linear, linear_scale, rounding_error

FLOAT_RTOL = 2e-5  # float32 sums over 1100 products, in whatever order
SIGMAS = 6  # an output of a right kernel is beyond this once in 10^9
heights = st.sampled_from([1, 2, 15, 16, 17, 31, 33, 48, 97, 130])


def assert_only_rounded(out, x, weight):
    """Each output is off by no more than rounding x explains."""
    error = np.abs(out - linear(x, weight.values))
    bound = FLOAT_RTOL * linear_scale(x, weight.values)
    if weight.type.name not in FLOAT_KINDS:
        bound += SIGMAS * rounding_error(x, weight.values, weight.type.block_size)
    assert np.all(error <= bound)


def relative_errors(out, x, weight):
    """Error of each output over what it is measured by; NaN where an output was not written."""
    return (out - linear(x, weight)) / linear_scale(x, weight)


@pytest.mark.parametrize("kind", FLOAT_KINDS)
@FEW
@given(T=rows, N=heights, data=st.data(), seed=seeds)
def test_a_float_weight_agrees_with_reference(device, kind, T, N, data, seed):
    rng = np.random.default_rng(seed)
    K = data.draw(columns(kind))
    x, weight = hidden(rng, T, K), drawn(rng, kind, N, K)
    assert_only_rounded(run_op(device, "linear", {"x": x, "weight": weight}), x, weight)


@pytest.mark.parametrize("kind", [kind for kind in REQUIRED_KINDS + OPTIONAL_KINDS if kind not in FLOAT_KINDS])
@FEW
@given(T=rows, N=heights, data=st.data(), seed=seeds)
def test_a_quantized_weight_agrees_with_reference(device, kind, T, N, data, seed):
    rng = np.random.default_rng(seed)
    K = data.draw(columns(kind))
    x, weight = hidden(rng, T, K), drawn(rng, kind, N, K)
    with supported_or_refused(kind):
        assert_only_rounded(run_op(device, "linear", {"x": x, "weight": weight}), x, weight)


@pytest.mark.parametrize("kind", REQUIRED_KINDS + OPTIONAL_KINDS)
@pytest.mark.parametrize("K", [14336, 18944])
def test_a_wide_weight_agrees_with_reference(device, kind, K):
    """As wide as ``ffn_down`` of 7B and 8B, over more tokens than a cache keeps."""
    rng = np.random.default_rng(8)
    x, weight = hidden(rng, 32, K), drawn(rng, kind, 17, K)
    with supported_or_refused(kind):
        assert_only_rounded(run_op(device, "linear", {"x": x, "weight": weight}), x, weight)


@pytest.mark.parametrize("kind", REQUIRED_KINDS + OPTIONAL_KINDS)
@pytest.mark.parametrize("T", [1, 9])
def test_the_error_is_small_on_the_whole(device, kind, T):
    """With outlier channels within the op's tolerance, without them within half of it."""
    rng = np.random.default_rng(7)
    weight = drawn(rng, kind, 403, 512)
    for x, bound in (
        (hidden(rng, T, 512), LINEAR.rtol),
        (rng.normal(size=(T, 512)).astype(np.float32), LINEAR.rtol / 2),
    ):
        with supported_or_refused(kind):
            errors = relative_errors(run_op(device, "linear", {"x": x, "weight": weight}), x, weight.values)
            assert np.sqrt(np.mean(errors**2)) <= bound


@pytest.mark.parametrize("kind", REQUIRED_KINDS)
def test_a_row_of_zeros_gives_zeros(device, kind):
    weight = drawn(np.random.default_rng(8), kind, 17, 256)
    out = run_op(device, "linear", {"x": np.zeros((2, 256), np.float32), "weight": weight})
    assert not out.any()


@pytest.mark.parametrize("kind", REQUIRED_KINDS)
def test_rows_of_very_different_size_do_not_touch_each_other(device, kind):
    """Each row has its own scales: a row beside one that is a million times larger keeps its precision."""
    rng = np.random.default_rng(9)
    x, weight = rng.normal(size=(5, 512)).astype(np.float32), drawn(rng, kind, 33, 512)
    x[1] *= 1e6
    assert_only_rounded(run_op(device, "linear", {"x": x, "weight": weight}), x, weight)


def test_a_row_of_another_length_is_named():
    with pytest.raises(ShapeError, match=r"linear\.weight: K=65, but K=64 elsewhere"):
        LINEAR.infer({"x": ("T", 64), "weight": (10, 65)}, {})


def program_with(spec):
    """x [T, K] times a weight of *spec*."""
    ops = Builder("one linear")
    x = ops.input("x", ("T", spec.shape[1]))
    return verify(ops.program("out", ops.linear(x, ops.weight(spec))))


@pytest.mark.parametrize("type_id", [5, 24, 9999])
def test_a_type_without_a_kernel_is_refused_by_name(device, type_id):
    verified = program_with(WeightSpec("blk.0.ffn_up.weight", type_id, (16, 256)))
    with pytest.raises(UnsupportedOp, match=r"blk\.0\.ffn_up\.weight"):
        device.check(verified)


def test_a_broken_block_is_refused(device):
    verified = program_with(WeightSpec("w", QuantType.Q8_0.id, (16, 33)))
    with pytest.raises(ShapeError, match="33"):
        device.check(verified)


def test_bytes_of_another_length_are_refused(device):
    spec, used = WeightSpec("w", QuantType.Q8_0.id, (16, 64)), device.budget.used
    with pytest.raises(ModelFileError, match="w"):
        device.load_weight(spec, memoryview(bytes(16 * 68 - 1)))
    assert device.budget.used == used

"""Types without kernels of their own stand in memory as others do: with the same values, counted as what they take."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu.recode import GRID_NBYTES, RECODED
from ollama_zmq.kernels.cpu.weights import weight_nbytes
from ollama_zmq.ops.program import WeightSpec
from tests.ops.one_op import drawn, run_op

KINDS = [kind.name for kind in QuantType if kind.id in RECODED]
N = 37


def table(device, weight):
    """All rows of a weight as the device has them."""
    return run_op(device, "embed", {"token_ids": np.arange(len(weight.values), dtype=np.int32), "weight": weight})


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_changes(device, kind):
    weight = drawn(np.random.default_rng(1), kind, N, 3 * QuantType[kind].block_size)
    assert_array_equal(table(device, weight), weight.values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_brought_over_in_pieces_is_one_weight(device, kind, monkeypatch):
    monkeypatch.setattr("ollama_zmq.kernels.cpu.weights.PACKED_AT_ONCE", 1)
    weight = drawn(np.random.default_rng(2), kind, N, 2 * QuantType[kind].block_size)
    assert_array_equal(table(device, weight), weight.values)


@pytest.mark.parametrize(("kind", "bits"), [("IQ1_S", 8 * GRID_NBYTES / 256), ("TQ1_0", 2.625), ("NVFP4", 16)])
def test_memory_is_counted_as_what_it_takes(kind, bits):
    assert weight_nbytes(WeightSpec("w", QuantType[kind].id, (32, 512))) == 32 * 512 * bits / 8

"""Types without kernels of their own stand in memory as others do: with the same values, counted as what they take."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq.formats.quants import QuantType, dequantize
from ollama_zmq.kernels.cpu.recode import GRID, GRID_NBYTES, RECODED
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
    monkeypatch.setattr("ollama_zmq.kernels.cpu.weights.RECODED_AT_ONCE", 1)
    weight = drawn(np.random.default_rng(2), kind, N, 2 * QuantType[kind].block_size)
    assert_array_equal(table(device, weight), weight.values)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if RECODED[QuantType[kind].id].target != GRID])
def test_the_new_blocks_are_blocks_of_the_other_type(kind):
    target = next(other for other in QuantType if other.id == RECODED[QuantType[kind].id].target)
    weight = drawn(np.random.default_rng(3), kind, N, 512)
    blocks = np.frombuffer(weight.data, np.uint8).reshape(-1, weight.type.block_nbytes)
    recoded = RECODED[weight.type.id].blocks(blocks)
    assert_array_equal(dequantize(target, recoded.tobytes(), weight.shape), weight.values)


@pytest.mark.parametrize(("kind", "bits"), [("IQ1_S", 8 * GRID_NBYTES / 256), ("TQ1_0", 2.625), ("NVFP4", 16)])
def test_memory_is_counted_as_what_it_takes(kind, bits):
    assert weight_nbytes(WeightSpec("w", QuantType[kind].id, (32, 512))) == 32 * 512 * bits / 8

"""Arrays over the kernels' memory cannot be read after it is gone, and what is closed is refused."""

import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Budget
from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu import weights
from ollama_zmq.kernels.cpu.memory import Memory
from ollama_zmq.kernels.cpu.pool import Pool
from ollama_zmq.kernels.cpu.weights import SlabAllocator, weight_in_parts
from ollama_zmq.ops.program import WeightSpec

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("nbytes", [4096, 3 * MEBIBYTE])
def test_an_array_keeps_its_values_after_close(nbytes):
    memory = Memory(nbytes)
    first, second = memory.floats(64, 500), memory.floats(2048, 512)
    first[:] = 1
    second[:] = 2
    memory.close()
    assert memory.address == 0
    del memory
    assert_array_equal(first[:496], 1)
    del first
    assert_array_equal(second, 2)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed")
def test_what_was_no_array_goes_back_at_once():
    """The system counts the pages in use: an array of logits must not hold a KV cache."""
    memory = Memory(64 * MEBIBYTE)
    np.frombuffer(memory, np.uint8)[:] = 1
    kept = memory.floats(32 * MEBIBYTE, 4)
    before = resident_bytes()
    memory.close()
    assert resident_bytes() <= before - 60 * MEBIBYTE
    assert_array_equal(kept.view(np.uint8), 1)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed")
def test_the_memory_of_a_weight_goes_back_before_its_slab_and_the_slab_with_the_last():
    allocator = SlabAllocator(Budget(64 * MEBIBYTE))
    small, large = allocator.take(64, "small"), allocator.take(32 * MEBIBYTE, "large")
    assert small.slab is large.slab
    small.slab.memory.bytes()[large.offset : large.offset + large.nbytes] = 1
    before = resident_bytes()
    large.release()
    assert resident_bytes() <= before - 30 * MEBIBYTE
    assert small.slab.memory.address
    small.release()
    assert small.slab.memory.address == 0


def test_a_weight_whose_loading_is_given_up_is_not_counted():
    budget, pool = Budget(MEBIBYTE), Pool(1)
    parts = weight_in_parts(
        WeightSpec("w", QuantType.F32.id, (64, 64)), memoryview(bytes(4 * 64 * 64)), SlabAllocator(budget), pool
    )
    next(parts)
    assert budget.used > 0
    parts.close()
    assert budget.used == 0
    pool.close()


def test_what_the_system_refuses_is_not_counted(monkeypatch):
    def refuse(nbytes):
        raise MemoryError

    monkeypatch.setattr(weights, "Memory", refuse)
    budget = Budget(MEBIBYTE)
    with pytest.raises(OutOfDeviceMemory, match="w needs 64 B, which the system refused"):
        SlabAllocator(budget).take(64, "w")
    assert budget.used == 0


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_closed_memory_gives_no_arrays_and_closes_again():
    memory = Memory(4096)
    memory.close()
    memory.close()
    with pytest.raises(BufferError, match="closed"):
        memory.floats(0, 4)


def test_a_closed_pool_packs_nothing():
    pool, memory = Pool(2), Memory(4096)
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.pack(0, np.zeros(64, np.uint8), 1, 16, memory.address)

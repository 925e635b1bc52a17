"""Arrays over the kernels' memory cannot be read after it is gone, and what is closed is refused."""

import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq.kernels.cpu.memory import Memory
from ollama_zmq.kernels.cpu.pool import Pool

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

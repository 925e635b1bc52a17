"""What was read of a mapped file leaves the process and not the page cache."""

import mmap
import os

import numpy as np
import pytest

from ollama_zmq.devices.base import Budget
from ollama_zmq.formats.mapped import drop_resident_pages
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu import open_device
from ollama_zmq.ops.program import WeightSpec

MEBIBYTE = 1 << 20


@pytest.fixture
def mapped(tmp_path):
    """A read-only map of 24 MB of random bytes."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(24 * MEBIBYTE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as made:
        yield made


def pages_of_files():
    """Bytes of mapped files in this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


@pytest.mark.parametrize(
    ("begin", "end"), [(0, 24 * MEBIBYTE), (4097, 20 * MEBIBYTE + 1), (9 * MEBIBYTE, 24 * MEBIBYTE)]
)
def test_the_pages_go_and_the_bytes_stay(mapped, begin, end):
    before, copy = pages_of_files(), bytes(mapped)
    with memoryview(mapped) as whole, whole[begin:end] as part:
        held = pages_of_files()
        assert held - before > 20 * MEBIBYTE
        drop_resident_pages(part)
        assert held - pages_of_files() > (end - begin) - 3 * MEBIBYTE
        assert part == copy[begin:end]


@pytest.mark.parametrize("data", [bytes(5000), bytearray(b"x" * 5000), np.ones(5000, np.uint8), b""])
def test_bytes_that_are_no_file_stay_as_they_are(data):
    before = bytes(data)
    drop_resident_pages(memoryview(data))
    assert bytes(data) == before


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed")
def test_a_weight_that_was_packed_holds_nothing_of_its_file(mapped, monkeypatch):
    monkeypatch.setattr("ollama_zmq.kernels.cpu.weights.PACKED_AT_ONCE", 4 * MEBIBYTE)
    device = open_device(2, Budget(64 * MEBIBYTE))
    spec, before = WeightSpec("w", QuantType.Q4_0.id, (16384, 2048)), pages_of_files()
    with memoryview(mapped)[4096 : 4096 + 16384 * 2048 // 32 * 18] as data:
        device.load_weight(spec, data)
        assert pages_of_files() - before < 3 * MEBIBYTE
    device.close()

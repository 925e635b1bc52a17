"""What the CPU device promises besides its numbers: memory that is counted and given back, refusals, names."""

import gc
import os

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.errors import ModelFileError, OpError, OutOfDeviceMemory, RequestError, ShapeError
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.kernels.cpu import isa_names, open_device
from ollama_zmq.kernels.cpu.device import CpuDevice
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify
from tests.models.running import cut, running
from tests.models_tiny import FILE_TYPES, write_tiny_llama

MEBIBYTE = 1 << 20
MATRIX = WeightSpec("w", QuantType.F32.id, (20, 8))
ONES = memoryview(np.ones((20, 8), np.float32)).cast("B")


@pytest.fixture
def device():
    """A device of two threads and 64 MiB; a test that leaves memory counted fails."""
    opened = open_device(2, Budget(64 * MEBIBYTE))
    yield opened
    opened.close()
    assert opened.budget.used == 0


def cached(kv_heads=2):
    """A program with a cache and one weight: token ids -> embedding -> attention over itself."""
    ops = Builder("cached")
    x = ops.embed(ops.input("token_ids", ("T",), "int32"), ops.weight(MATRIX))
    cache = ops.cache("kv", n_kv_heads=kv_heads, head_dim=8 // kv_heads)
    ops.store_kv(x, x, cache, n_kv_heads=kv_heads, head_dim=8 // kv_heads)
    heads = {"n_heads": kv_heads, "n_kv_heads": kv_heads, "head_dim": 8 // kv_heads}
    return verify(ops.program("out", ops.attention(x, cache, **heads, scale=1.0)))


def test_what_is_taken_is_what_was_announced(device):
    weight = device.load_weight(MATRIX, ONES)
    assert device.budget.used == weight.nbytes == device.weight_nbytes(MATRIX) == 32 * 8 * 4
    announced = device.executable_nbytes(cached(), kv_pages=3, max_tokens=16)
    executable = device.compile(cached(), {"w": weight}, kv_pages=3, max_tokens=16)
    assert executable.nbytes == announced == device.budget.used - weight.nbytes
    executable.close()
    executable.close()
    weight.close()
    weight.close()
    assert device.budget.used == 0


def test_every_page_is_counted(device):
    few, many = (device.executable_nbytes(cached(), kv_pages=n, max_tokens=1) for n in (1, 11))
    padded = 16  # values are padded to 16 of each head
    one_more_run = 2 * (16 + padded) * 4  # a record of two query heads: 16 floats, then a value
    assert many - few == 10 * 64 * 2 * (4 + padded) * 2 + one_more_run


def test_a_weight_beyond_the_budget_is_named_and_not_counted():
    device = CpuDevice(threads=1, budget=Budget(1000))
    with pytest.raises(OutOfDeviceMemory, match=r"^w needs 1\.0 KB, 1 KB of the budget of 1 KB is free"):
        device.load_weight(MATRIX, ONES)
    assert device.budget.used == 0
    device.close()


def test_a_program_beyond_the_budget_is_named_and_not_counted(device):
    weight, used = device.load_weight(MATRIX, ONES), device.budget.used
    with pytest.raises(OutOfDeviceMemory, match="KV cache and scratch of program 'cached'"):
        device.compile(cached(), {"w": weight}, kv_pages=1 << 20, max_tokens=8)
    assert device.budget.used == used == weight.nbytes


def test_close_gives_back_what_was_left_open():
    device = open_device(2, Budget(64 * MEBIBYTE))
    weights = {"w": device.load_weight(MATRIX, ONES)}
    device.compile(cached(), weights, kv_pages=2, max_tokens=4)
    device.close()
    assert device.budget.used == 0


def test_weights_share_memory_without_touching_each_other(device):
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(20, 8)).astype(np.float32) for _ in range(5)]
    weights = [device.load_weight(MATRIX, memoryview(array)) for array in arrays]
    for freed in (1, 3):
        weights[freed].close()
    arrays[1] = rng.normal(size=(20, 8)).astype(np.float32)
    weights[1] = device.load_weight(MATRIX, memoryview(arrays[1]))
    for i in (0, 1, 2, 4):
        assert_array_equal(_rows_of(device, weights[i]), arrays[i])


def _rows_of(device, weight):
    ops = Builder("rows")
    verified = verify(ops.program("out", ops.embed(ops.input("ids", ("T",), "int32"), ops.weight(MATRIX))))
    executable = device.compile(verified, {"w": weight}, kv_pages=0, max_tokens=20)
    rows = np.array(executable.run(np.arange(20, dtype=np.int32), Step.of([20], [0])))
    executable.close()
    return rows


def test_a_file_of_another_length_is_refused(device):
    with pytest.raises(ModelFileError, match=r"w: 636 bytes, but F32 \[20, 8\] has 640"):
        device.load_weight(MATRIX, ONES[:-4])


def test_a_weight_that_is_missing_or_another_is_refused(device):
    with pytest.raises(ShapeError, match="weight 'w': missing"):
        device.compile(cached(), {}, kv_pages=1, max_tokens=4)
    other = WeightSpec("w", QuantType.F32.id, (10, 16))
    with pytest.raises(ShapeError, match="weight 'w'"):
        device.compile(cached(), {"w": device.load_weight(other, ONES)}, kv_pages=1, max_tokens=4)


def test_rows_that_nobody_asks_for_take_no_memory(device):
    """The output head of a 128k vocabulary would take 268 MB for 512 rows of logits."""
    ops = Builder("head")
    x = ops.take_rows(ops.input("x", ("T", 8)), ops.rows)
    verified = verify(ops.program("out", ops.linear(x, ops.weight(MATRIX))))
    few, all_of_them = (device.executable_nbytes(verified, kv_pages=0, max_tokens=64, max_rows=n) for n in (2, 64))
    assert few < all_of_them
    weights = {"w": device.load_weight(MATRIX, ONES)}
    executable = device.compile(verified, weights, kv_pages=0, max_tokens=64, max_rows=2)
    assert executable.nbytes == few
    with pytest.raises(ShapeError, match="3 rows are wanted of 3, planned for 2"):
        executable.run(np.ones((3, 8), np.float32), Step.of([3], [0], rows=[0, 1, 2]))


@pytest.mark.parametrize("token_id", [-1, 20, 2**31 - 1, -(2**31)])
def test_a_refused_token_id_changes_nothing(device, token_id):
    executable = device.compile(cached(), {"w": device.load_weight(MATRIX, ONES)}, kv_pages=1, max_tokens=8)
    ids = np.array([3, 4, 5], np.int32)
    executable.run(ids[:2], Step.of([2], [0], [[0]]))
    with pytest.raises(ShapeError, match=rf"token_ids\[1\]={token_id} is not in 0..19"):
        executable.run(np.array([1, token_id], np.int32), Step.of([2], [0], [[0]]))
    assert_array_equal(executable.run(ids[2:], Step.of([1], [2], [[0]])), np.ones((1, 8)))


def test_a_closed_program_is_refused(device):
    executable = device.compile(cached(), {"w": device.load_weight(MATRIX, ONES)}, kv_pages=1, max_tokens=8)
    executable.close()
    with pytest.raises(OpError, match="program 'cached': closed"):
        executable.run(np.array([1], np.int32), Step.of([1], [0], [[0]]))


def test_an_unknown_instruction_set_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("OLLAMA_CPU_ISA", "mmx")
    with pytest.raises(RequestError, match=r"OLLAMA_CPU_ISA='mmx': this CPU has .*generic"):
        open_device(1, Budget(MEBIBYTE))


@pytest.mark.parametrize("isa", isa_names())
def test_the_name_says_processor_instruction_set_and_threads(monkeypatch, isa):
    monkeypatch.setenv("OLLAMA_CPU_ISA", isa)
    device = open_device(3, Budget(MEBIBYTE))
    assert device.name.endswith(f", {isa}, 3 threads")
    device.close()


@pytest.mark.parametrize("threads", [0, -1, 100000])
def test_an_impossible_number_of_threads_is_refused(threads):
    with pytest.raises(RequestError, match=f"{threads} threads"):
        open_device(threads, Budget(MEBIBYTE))


def test_measuring_leaves_nothing_behind():
    device = open_device(2, Budget(256 * MEBIBYTE))
    speeds = device.measure()
    assert speeds.decode_bytes_per_s > 0
    assert speeds.prefill_macs_per_s > 0
    assert device.budget.used == 0
    device.close()


def test_a_budget_without_room_is_still_measured():
    device = open_device(1, Budget(8 * MEBIBYTE))
    assert device.measure().decode_bytes_per_s > 0
    device.close()


def test_what_a_run_returned_outlives_collection(device):
    executable = device.compile(cached(), {"w": device.load_weight(MATRIX, ONES)}, kv_pages=1, max_tokens=8)
    out = executable.run(np.array([1], np.int32), Step.of([1], [0], [[0]]))
    del executable
    gc.collect()
    assert_array_equal(out, np.ones((1, 8)))


def test_what_a_run_returned_can_be_read_after_close():
    device = open_device(2, Budget(64 * MEBIBYTE))
    executable = device.compile(cached(), {"w": device.load_weight(MATRIX, ONES)}, kv_pages=1, max_tokens=8)
    out = executable.run(np.array([1], np.int32), Step.of([1], [0], [[0]]))
    executable.close()
    device.close()
    del executable, device
    gc.collect()
    assert_array_equal(out, np.ones((1, 8)))


def test_a_closed_device_loads_and_compiles_nothing(device):
    weight = device.load_weight(MATRIX, ONES)
    device.close()
    with pytest.raises(OpError, match="device is closed"):
        device.load_weight(MATRIX, ONES)
    with pytest.raises(OpError, match="device is closed"):
        device.compile(cached(), {"w": weight}, kv_pages=1, max_tokens=8)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_K", "Q3_K", "IQ4_NL", "IQ2_XS"])
def test_a_split_model_has_the_bits_of_a_whole_one(device, tmp_path, kind):
    path = write_tiny_llama(tmp_path / "tiny.gguf", kind=kind, n_layers=3, rope_freqs=True, biases=True)
    token_ids = np.random.default_rng(2).integers(0, 300, 70) % 250
    with running(device, path) as model:
        whole = model.run(token_ids)
    with running(device, path, lambda network: cut(network, 1, 2)) as model:
        assert_array_equal(model.run(token_ids), whole)
        model.run(token_ids[:30])
        model.run(token_ids[30:69], start=30)
        assert_array_equal(model.run(token_ids[69:], start=69), whole[69:])


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_a_model_of_any_type_agrees_with_the_reference_device(device, tmp_path, kind):
    """Nothing but the rounding of activations to 8 bits lies between them."""
    from ollama_zmq.devices.reference import ReferenceDevice

    path = write_tiny_llama(tmp_path / "tiny.gguf", kind=kind, tied=False)
    token_ids = np.random.default_rng(3).integers(0, 250, 60)
    logits = []
    for other in (device, ReferenceDevice(Budget(1 << 30))):
        with running(other, path) as model:
            logits.append(np.array(model.run(token_ids), np.float64))
    assert np.sum((logits[0] - logits[1]) ** 2) <= 3e-3 * np.sum(logits[1] ** 2)


def test_a_model_of_floats_agrees_with_the_reference_device(device, tmp_path):
    from ollama_zmq.devices.reference import ReferenceDevice

    path = write_tiny_llama(
        tmp_path / "tiny.gguf", kind="F32", rope_freqs=True, biases=True, ffn_biases=True, tied=False
    )
    token_ids = np.random.default_rng(3).integers(0, 250, 100)
    logits = []
    for other in (device, ReferenceDevice(Budget(1 << 30))):
        with running(other, path) as model:
            logits.append(model.run(token_ids))
    assert np.abs(logits[0] - logits[1]).max() <= 2e-3 * np.abs(logits[1]).max()


def n_os_threads():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize(("wanted", "more"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 0), (9, 0)])
def test_a_program_has_the_threads_it_was_compiled_for_as_long_as_it_lives(wanted, more):
    device = open_device(4, Budget(64 * MEBIBYTE))
    weight, before = device.load_weight(MATRIX, ONES), n_os_threads()
    executable = device.compile(cached(), {"w": weight}, kv_pages=1, max_tokens=1, threads=wanted)
    assert n_os_threads() == before + more
    assert executable.nbytes == device.executable_nbytes(cached(), kv_pages=1, max_tokens=1, threads=wanted)
    executable.close()
    device.close()
    del executable
    assert n_os_threads() == before - 3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_fewer_threads_take_less_memory_and_give_the_same_bits(threads):
    device = open_device(4, Budget(64 * MEBIBYTE))
    weight, token_ids = device.load_weight(MATRIX, ONES), np.arange(9, dtype=np.int32)
    all_threads, few = (
        device.compile(cached(), {"w": weight}, kv_pages=1, max_tokens=9, threads=n) for n in (0, threads)
    )
    step = Step.of([9], [0], [[0]])
    assert few.nbytes < all_threads.nbytes
    assert_array_equal(few.run(token_ids, step), all_threads.run(token_ids, step))
    device.close()

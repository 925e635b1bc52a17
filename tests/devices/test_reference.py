"""Laws of a device that the op tests do not show, on the reference device; and of the registry."""

import numpy as np
import psutil
import pytest

from ollama_zmq.devices.base import Budget, Device, Step
from ollama_zmq.devices.reference import FUNCTIONS, ReferenceDevice
from ollama_zmq.devices.registry import KINDS, available_memory, default_budget, open_device
from ollama_zmq.errors import ModelFileError, OpError, OutOfDeviceMemory, RequestError, ShapeError, UnsupportedOp
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify
from ollama_zmq.ops.registry import OPS
from ollama_zmq.ops.state import PagedKvSpec, SlotSpec

SPEC = WeightSpec("w", 0, (4, 8))
DATA = np.arange(32, dtype=np.float32)


def linear_program(spec=SPEC):
    ops = Builder("linear")
    return verify(ops.program("out", ops.linear(ops.input("x", ("T", 8)), ops.weight(spec))))


def cache_program():
    ops = Builder("cache")
    x = ops.input("x", ("T", 8))
    cache = ops.cache("kv", n_kv_heads=2, head_dim=4)
    ops.store_kv(x, x, cache, n_kv_heads=2, head_dim=4)
    return verify(ops.program("out", ops.attention(x, cache, n_heads=2, n_kv_heads=2, head_dim=4, scale=1.0)))


@pytest.fixture
def device():
    opened: Device = ReferenceDevice(Budget(1 << 20))
    yield opened
    opened.close()
    assert opened.budget.used == 0


def loaded(device):
    return {"w": device.load_weight(SPEC, memoryview(DATA.tobytes()))}


def test_what_is_announced_is_what_is_taken(device):
    verified = cache_program()
    nbytes = device.executable_nbytes(verified, kv_pages=3, max_tokens=5)
    executable = device.compile(verified, {}, kv_pages=3, max_tokens=5)
    assert (device.budget.used, executable.nbytes) == (nbytes, nbytes)
    assert nbytes >= PagedKvSpec("kv", 2, 4, 4, "f16").nbytes(3)
    weight = loaded(device)["w"]
    assert device.budget.used == nbytes + weight.nbytes
    assert weight.nbytes == device.weight_nbytes(SPEC)


@pytest.mark.parametrize("kind", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("state", "named"),
    [
        (PagedKvSpec("kv", 2, 4, 4, "f16", group=1), "state 'kv': group 1, but a step has the page tables of group 0"),
        (SlotSpec("slot", (2, 4)), "state 'slot': a step has no slots"),
    ],
)
def test_a_state_for_which_a_step_has_no_numbers_is_refused_before_memory_is_taken(kind, state, named):
    ops = Builder("states")
    ops.state(state)
    verified = verify(ops.program("out", ops.add(x := ops.input("x", ("T", 8)), x)))
    device = open_device(kind, threads=1, budget=Budget(1 << 20))
    with pytest.raises(OpError, match=named):
        device.executable_nbytes(verified, kv_pages=3, max_tokens=5)
    with pytest.raises(OpError, match=named):
        device.compile(verified, {}, kv_pages=3, max_tokens=5)
    assert device.budget.used == 0
    device.close()


def test_closing_twice_gives_back_once(device):
    executable = device.compile(cache_program(), {}, kv_pages=1, max_tokens=1)
    executable.close()
    executable.close()
    assert device.budget.used == 0


def test_closing_the_device_closes_everything(device):
    device.compile(linear_program(), loaded(device), kv_pages=0, max_tokens=1)
    assert device.budget.used > 0
    device.close()
    assert device.budget.used == 0


def test_a_weight_beyond_the_budget_is_refused_and_not_counted():
    device = ReferenceDevice(Budget(127))
    with pytest.raises(OutOfDeviceMemory, match="weight 'w' needs 128 B, 127 B of the budget of 127 B is free"):
        loaded(device)
    assert device.budget.used == 0


def test_a_cache_beyond_the_budget_is_refused_and_not_counted(device):
    with pytest.raises(OutOfDeviceMemory, match="program 'cache'"):
        device.compile(cache_program(), {}, kv_pages=10_000_000, max_tokens=1)
    assert device.budget.used == 0


def test_a_closed_executable_does_not_run(device):
    executable = device.compile(cache_program(), {}, kv_pages=1, max_tokens=1)
    executable.close()
    with pytest.raises(OpError, match="closed"):
        executable.run(np.zeros((1, 8), np.float32), Step.of([1], [0], [[0]]))


def test_a_missing_weight_is_named(device):
    with pytest.raises(OpError, match="weight 'w' is not loaded"):
        device.compile(linear_program(), {}, kv_pages=0, max_tokens=1)


def test_a_weight_of_another_shape_is_named(device):
    weights = loaded(device)
    with pytest.raises(OpError, match="weight 'w' is loaded as"):
        device.compile(linear_program(WeightSpec("w", 0, (5, 8))), weights, kv_pages=0, max_tokens=1)


def test_an_op_without_a_function_is_named(device, monkeypatch):
    monkeypatch.delitem(FUNCTIONS, "linear")
    with pytest.raises(UnsupportedOp, match="'linear'"):
        device.check(linear_program())


def test_weights_of_the_wrong_length_are_named(device):
    with pytest.raises(ModelFileError, match="weight 'w': 127 bytes, expected 128"):
        device.load_weight(SPEC, memoryview(DATA.tobytes()[:-1]))


def test_what_a_run_returns_is_not_the_input(device):
    ops = Builder("nothing")
    verified = verify(ops.program("out", ops.input("x", ("T", 8))))
    executable = device.compile(verified, {}, kv_pages=0, max_tokens=2)
    x = np.ones((2, 8), np.float32)
    out = executable.run(x, Step.of([2], [0]))
    out[:] = 7
    assert x.max() == 1


def test_a_pass_without_tokens_is_a_pass(device):
    executable = device.compile(cache_program(), {}, kv_pages=1, max_tokens=2)
    assert executable.run(np.zeros((0, 8), np.float32), Step.of([], [])).shape == (0, 8)


def test_beyond_float16_a_value_is_infinite_without_a_warning(device):
    executable = device.compile(cache_program(), {}, kv_pages=1, max_tokens=2)
    x = np.zeros((1, 8), np.float32)
    x[0, 0] = -1e6
    out = executable.run(x, Step.of([1], [0], [[0]]))
    assert np.isfinite(out[0, 4:]).all()
    assert not np.isfinite(out[0, 0])


def test_every_op_has_a_function():
    assert set(FUNCTIONS) == set(OPS)


def test_it_measures_itself(device):
    speeds = device.measure()
    assert speeds.decode_bytes_per_s > 0
    assert speeds.prefill_macs_per_s > 0


@pytest.mark.parametrize("field", ["lengths", "positions", "rows"])
@pytest.mark.parametrize("values", [[2**31], [2**70], np.array([2**31]), [[1]], ["one"], [None], [1.5], [True], 3])
def test_a_step_of_other_than_integers_is_named(field, values):
    with pytest.raises(ShapeError, match=field):
        Step.of(**({"lengths": [1], "positions": [0]} | {field: values}))


def test_positions_of_tokens_count_on_in_each_sequence():
    assert Step.of([2, 1, 3], [5, 0, 70]).token_positions().tolist() == [5, 6, 0, 70, 71, 72]
    assert Step.of([], []).token_positions().tolist() == []


def test_an_unknown_kind_is_named():
    with pytest.raises(RequestError, match="unknown device 'tpu': this version has cpu, reference"):
        open_device("tpu", budget=Budget(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_is_what_was_asked_for(kind):
    device = open_device(kind, threads=1, budget=Budget(1 << 20))
    assert (device.kind, device.budget.used) == (kind, 0)
    device.close()


def test_the_default_budget_leaves_a_tenth():
    assert 0 < default_budget() <= 0.9 * psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 1000),
        ({"memory.max": "max", "memory.current": "10"}, 1000),
        ({"memory.max": "300", "memory.current": "100"}, 200),
        ({"memory.max": "300", "memory.current": "100", "memory.stat": "anon 5\ninactive_file 60\n"}, 260),
        ({"memory.max": "300", "memory.current": "400"}, 0),
        ({"a/b/memory.max": "300", "a/b/memory.current": "100"}, 200),
        ({"a/memory.max": "300", "a/memory.current": "250", "a/b/memory.max": "max", "a/b/memory.current": "5"}, 50),
        ({"memory/memory.limit_in_bytes": "400", "memory/memory.usage_in_bytes": "100"}, 300),
        ({"memory/c/memory.limit_in_bytes": "9223372036854771712", "memory/c/memory.usage_in_bytes": "1"}, 1000),
    ],
)
def test_a_control_group_s_limit_holds(tmp_path, files, available):
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/c\n3:cpu,cpuacct:/x\n0::/a/b\n")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_memory(1000, root=tmp_path / "groups", membership=membership) == available

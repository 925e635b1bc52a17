"""What is broken, empty, unaligned or too large has an answer or an error of its own, and harms no other row."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.errors import OutOfDeviceMemory
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.kernels.cpu import executable, weights
from ollama_zmq.kernels.cpu.device import CpuDevice
from ollama_zmq.models.network import Network
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify
from tests.kernels.test_linear_bits import KINDS, SCALE_AT, product, width
from tests.models.running import running
from tests.models_tiny import write_tiny_llama
from tests.ops.one_op import Weight, drawn, hidden, ready

MODELS = {"dense": {"kind": "Q8_0"}, "experts": {"kind": "Q4_0", "experts": (5, 2)}}
TOKENS = np.arange(3, 20, dtype=np.int32)


def unaligned(array):
    """The same numbers one byte past any alignment."""
    frame = np.zeros(array.nbytes + 1, np.uint8)
    frame[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return frame[1:].view(array.dtype).reshape(array.shape)


@pytest.fixture(params=MODELS)
def path(request, tmp_path):
    return write_tiny_llama(tmp_path / "tiny.gguf", tied=False, n_layers=2, **MODELS[request.param])


def programs(network):
    return [network.layers_program(range(2)), network.head_program()]


def test_a_pass_without_tokens_is_a_pass(device, path):
    with running(device, path, programs) as model:
        assert model.run_step(np.zeros(0, np.int32), Step.of([], [])).shape == (0, model.network.vocab_size)
        before = model.run(TOKENS)
        model.run_step(np.zeros(0, np.int32), Step.of([], []))
        assert_array_equal(model.run(TOKENS), before)


def test_inputs_may_stand_at_any_address(device, path):
    step = Step.of([len(TOKENS)], [0], [[0]], range(len(TOKENS)))
    with running(device, path, programs) as model:
        expected = given = model.first_input(TOKENS)
        for executable in model.executables:
            expected = np.array(executable.run(expected, step))
            given = unaligned(np.array(executable.run(unaligned(given), step)))
            assert_array_equal(given, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_weight_may_stand_at_any_address(device, kind):
    rng = np.random.default_rng(1)
    weight = drawn(rng, kind, 35, width(kind, 2))
    moved = Weight(weight.type, memoryview(unaligned(np.frombuffer(weight.data, np.uint8))), weight.shape)
    x = hidden(rng, 3, weight.shape[1])
    assert_array_equal(*(product(device, given, x)[0] for given in (weight, moved)))


@pytest.mark.parametrize("kind", SCALE_AT)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_scale_spoils_the_embedding_of_its_own_token_only(device, kind, bad):
    weight = drawn(np.random.default_rng(2), kind, 17, width(kind, 2))
    at = 3 * len(weight.data) // 17 + SCALE_AT[kind]
    data = weight.data[:at] + np.array(bad, np.float16).tobytes() + weight.data[at + 2 :]
    good, spoiled = (embeddings(device, given) for given in (weight, Weight(weight.type, data, weight.shape)))
    assert_array_equal(np.delete(spoiled, 3, axis=0), np.delete(good, 3, axis=0))
    assert not np.isfinite(spoiled[3]).all()


def embeddings(device, weight):
    """Every row of *weight*."""
    ops = Builder("embed")
    token_ids = ops.input("token_ids", ("T",), "int32")
    out = ops.embed(token_ids, ops.weight(WeightSpec("w", weight.type.id, weight.shape)))
    T = weight.shape[0]
    with ready(device, ops.program("out", out), {"w": weight}, max_tokens=T) as run:
        return run(np.arange(T, dtype=np.int32), Step.of([T], [0]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_broken_number_spoils_its_own_column_only(devices, kind):
    rng = np.random.default_rng(3)
    weight = drawn(rng, kind, 17, 38)
    size = len(weight.data) // (17 * 38)
    at = (3 * 38 + 5) * size
    spoiled = Weight(weight.type, weight.data[:at] + b"\xff" * size + weight.data[at + size :], weight.shape)
    x = hidden(rng, 3, 38)
    for device in devices.values():
        (good,), (bad,) = product(device, weight, x), product(device, spoiled, x)
        assert_array_equal(np.delete(bad, 3, axis=1), np.delete(good, 3, axis=1))
        assert np.isnan(bad[:, 3]).all()


def test_memory_that_the_system_refuses_is_named_and_not_counted(monkeypatch, path):
    def refused(nbytes):
        raise MemoryError

    device = CpuDevice(threads=1, budget=Budget(1 << 30))
    with open_gguf(path) as file:
        network = Network(file)
        loaded = {
            spec.name: device.load_weight(spec, file.data(spec.name))
            for spec in network.layers_program(range(1)).weights
        }
        used = device.budget.used
        monkeypatch.setattr(executable, "Memory", refused)
        monkeypatch.setattr(weights, "Memory", refused)
        with pytest.raises(OutOfDeviceMemory, match=r"program 'layers 0\.\.0' needs .* which the system refused"):
            device.compile(verify(network.layers_program(range(1))), loaded, kv_pages=2, max_tokens=4)
        assert device.budget.used == used
        large = WeightSpec("blk.7.ffn_up.weight", 0, (5000, 5000))
        with pytest.raises(OutOfDeviceMemory, match=r"blk\.7\.ffn_up\.weight needs .* which the system refused"):
            device.load_weight(large, memoryview(bytes(4 * 5000 * 5000)))
        assert device.budget.used == used
    device.close()
    assert device.budget.used == 0

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.devices.registry import open_device
from ollama_zmq.engine.embedding import Embedding
from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.quants import tensor_nbytes, type_of_id
from ollama_zmq.kernels.cpu.weights import FORMATS
from ollama_zmq.models.network import EMBED, Network
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import WeightSpec, verify
from tests.models_tiny import write_tiny_llama

V, D = 40, 512


def lookup_of(spec):
    ops = Builder("embed")
    return ops.program("rows", ops.embed(ops.input("token_ids", ("T",), "int32"), ops.weight(spec)))


def embedded(verified, spec, data, token_ids):
    """What the CPU's embed kernel makes of *token_ids*."""
    device = open_device("cpu", threads=1, budget=Budget(1 << 28))
    weight = device.load_weight(spec, data)
    executable = device.compile(verified, {spec.name: weight}, kv_pages=0, max_tokens=len(token_ids))
    rows = np.array(executable.run(token_ids, Step.of([len(token_ids)], [0])))
    device.close()
    return rows


@pytest.mark.parametrize("kind", ["F16", "Q4_1", "Q8_0", "Q6_K"])
def test_rows_of_a_file_are_those_of_the_embed_kernel(kind, tmp_path):
    with open_gguf(write_tiny_llama(tmp_path / "tiny.gguf", kind=kind)) as gguf:
        spec = Network(gguf).embedding
        verified = verify(lookup_of(spec))
        token_ids = np.arange(spec.shape[0], dtype=np.int32)[::-1].copy()
        expected = embedded(verified, spec, gguf.data(spec.name), token_ids)
        assert np.array_equal(Embedding(gguf).rows(token_ids), expected)


@pytest.mark.parametrize("number", FORMATS, ids=lambda number: type_of_id(number).name)
def test_dequantizers_kernels_and_the_look_up_give_the_same_bits(number):
    """Split equals unsplit only if the broker's look-up and the device's are the same, NaN and all."""
    kind, spec = type_of_id(number), WeightSpec("w", number, (V, D))
    data = np.random.default_rng(0).integers(0, 256, tensor_nbytes(kind, (V, D)), dtype=np.uint8)
    verified = verify(lookup_of(spec))
    with np.errstate(all="ignore"):
        expected = dequantize(kind, memoryview(data), (V, D))
    found = embedded(verified, spec, memoryview(data), np.arange(V, dtype=np.int32))
    assert np.array_equal(found, expected, equal_nan=True)
    tensors = {EMBED: SimpleNamespace(type=kind, shape=(V, D))}
    embedding = Embedding(SimpleNamespace(tensors=tensors, data=lambda name: memoryview(data)))
    assert np.array_equal(embedding.rows(np.arange(V, dtype=np.int32)), expected, equal_nan=True)


@pytest.mark.parametrize("token_id", [-1, 32000])
def test_a_token_that_is_not_in_the_file_is_refused(token_id, tmp_path):
    with (
        open_gguf(write_tiny_llama(tmp_path / "tiny.gguf")) as gguf,
        pytest.raises(IndexError, match=f"row {token_id}"),
    ):
        Embedding(gguf).rows(np.array([token_id], np.int32))

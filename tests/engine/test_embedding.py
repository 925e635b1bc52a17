from __future__ import annotations

import numpy as np
import pytest

from ollama_zmq.devices.base import Budget, Step
from ollama_zmq.devices.registry import open_device
from ollama_zmq.engine.embedding import Embedding
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.models.base import Network
from ollama_zmq.ops.program import verify
from tests.models_tiny import FILE_TYPES, write_tiny_llama


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_rows_have_the_bits_of_the_embed_kernel(kind, tmp_path):
    """Split equals unsplit only if the broker's look-up and the device's are the same."""
    path = write_tiny_llama(tmp_path / "tiny.gguf", kind=kind)
    device = open_device("cpu", threads=1, budget=Budget(1 << 28))
    with open_gguf(path) as gguf:
        verified = verify(Network(gguf).embed_program())
        (spec,) = verified.program.weights
        token_ids = np.arange(spec.shape[0], dtype=np.int32)[::-1].copy()
        weight = device.load_weight(spec, gguf.data(spec.name))
        executable = device.compile(verified, {spec.name: weight}, kv_pages=0, max_tokens=len(token_ids))
        expected = np.array(executable.run(token_ids, Step.of([len(token_ids)], [0])))
        assert np.array_equal(Embedding(gguf).rows(token_ids), expected)
    device.close()

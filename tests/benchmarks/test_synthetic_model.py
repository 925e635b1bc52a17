"""The synthetic model is a model: it loads, its numbers are those of real weights, and its vocabulary tokenizes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ollama_zmq.formats.dequantize import dequantize
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.quants import QuantType
from ollama_zmq.models.network import Network
from ollama_zmq.text.tokenizer import load_tokenizer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "synthetic_model.py"
TYPES = {
    "q4_k_m": {QuantType.Q4_K, QuantType.Q6_K, QuantType.F32},
    "q8_0": {QuantType.Q8_0, QuantType.F32},
    "f16": {QuantType.F16, QuantType.F32},
}


@pytest.mark.parametrize("mix", TYPES)
def test_a_written_model_is_whole(tmp_path, mix):
    path = tmp_path / "tiny.gguf"
    subprocess.run([sys.executable, SCRIPT, "tiny", path, "--mix", mix, "--vocabulary", "1000"], check=True)
    with open_gguf(path) as file:
        assert Network(file).vocab_size == 1000
        assert {info.type for info in file.tensors.values()} == TYPES[mix]
        for name, info in file.tensors.items():
            values = dequantize(info.type, file.data(name), info.shape)
            expected = (1, 0) if "norm" in name else (0, 0.02)
            np.testing.assert_allclose((values.mean(), values.std()), expected, atol=0.002)
        tokenizer = load_tokenizer(file.metadata)
        ids = tokenizer.encode("hello, the sea", add_special=False, parse_special=False)
        assert 0 < len(ids) <= len("hello, the sea")
        assert max(ids) < 1000


def test_too_small_a_vocabulary_is_refused(tmp_path):
    command = [sys.executable, SCRIPT, "tiny", tmp_path / "tiny.gguf", "--vocabulary", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--vocabulary 100" in done.stderr
    assert not (tmp_path / "tiny.gguf").exists()

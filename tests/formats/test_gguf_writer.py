"""What is written is what the ``gguf`` package and our own reader read."""

import gguf
import numpy as np
import pytest

from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.gguf_writer import NewTensor, gguf_chunks
from ollama_zmq.formats.quants import QuantType

METADATA = {
    "general.architecture": "llama",
    "a.flag": True,
    "a.whole": 7,
    "a.negative": -7,
    "a.wide": 1 << 40,
    "a.wide.negative": -(1 << 40),
    "a.number": 0.5,
    "a.words": ["a", "▁b", "\udcff"],
    "a.whole.numbers": [1, -2],
    "a.numbers": [0.5, -1.5],
    "a.flags": [True, False],
    "a.array": np.array([1, 2], np.uint32),
}


@pytest.fixture
def written(tmp_path):
    values = {"v": np.arange(5, dtype="<f4"), "m": np.arange(6, dtype="<f2").reshape(2, 3)}
    types = {"v": QuantType.F32, "m": QuantType.F16}
    tensors = [
        NewTensor(name, types[name], array.shape, lambda array=array: [array.tobytes()[:3], array.tobytes()[3:]])
        for name, array in values.items()
    ]
    path = tmp_path / "x.gguf"
    path.write_bytes(b"".join(gguf_chunks(METADATA, tensors)))
    return path, values


def test_tensors_are_those_that_the_package_reads(written):
    path, values = written
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(read) == set(values)
    for name, array in values.items():
        assert np.array_equal(read[name].data, array)


def test_keys_are_those_that_the_package_reads(written):
    path, _ = written
    fields = gguf.GGUFReader(path).fields
    read = {key: fields[key].contents() for key in METADATA if key != "a.words"}
    assert read == {key: np.asarray(value).tolist() for key, value in METADATA.items() if key != "a.words"}


def test_words_that_are_no_utf_8_come_back(written):
    path, _ = written
    with open_gguf(path) as file:
        assert file.metadata["a.words"] == METADATA["a.words"]


def test_a_tensor_of_another_length_is_an_error():
    tensor = NewTensor("x", QuantType.F32, (3,), lambda: [bytes(8)])
    with pytest.raises(ValueError, match="tensor 'x': 8 bytes, expected 12"):
        list(gguf_chunks({}, [tensor]))

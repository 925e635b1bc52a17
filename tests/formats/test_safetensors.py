"""safetensors: what a header may say, and what it may not."""

import json

import numpy as np
import pytest

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.safetensors import open_safetensors

F32_2X3 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path, header, data=bytes(24)):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    return path


def test_a_tensor_is_the_bytes_that_its_offsets_name(tmp_path):
    values = np.arange(6, dtype="<f4")
    header = {
        "__metadata__": {"format": "pt"},
        "b": F32_2X3 | {"data_offsets": [4, 28]},
        "a": {**F32_2X3, "shape": [1]},
    }
    header["a"]["data_offsets"] = [0, 4]
    with open_safetensors(write(tmp_path / "x", header, bytes(4) + values.tobytes())) as file:
        assert list(file.tensors) == ["a", "b"]
        assert (file.tensors["b"].dtype, file.tensors["b"].shape) == ("F32", (2, 3))
        assert np.frombuffer(file.data("b"), "<f4").tolist() == values.tolist()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": F32_2X3 | {"data_offsets": [0, 28]}}, "tensor 'a' has 28 bytes, but F32 of shape [2, 3]"),
        ({"a": F32_2X3 | {"data_offsets": [24, 48]}}, "tensor 'a' ends at byte "),
        ({"a": F32_2X3 | {"data_offsets": [-24, 0]}}, "tensor 'a' has data_offsets [-24, 0]"),
        ({"a": F32_2X3 | {"data_offsets": [0]}}, "tensor 'a' has data_offsets [0]"),
        ({"a": F32_2X3 | {"data_offsets": [24, 0]}}, "tensor 'a' has -24 bytes"),
        ({"a": F32_2X3, "b": {**F32_2X3, "shape": [2, 2], "data_offsets": [8, 24]}}, "tensor 'b' begins at 8, inside"),
        ({"a": F32_2X3 | {"dtype": "F8_E4M3"}}, "tensor 'a' has dtype 'F8_E4M3'"),
        ({"a": F32_2X3 | {"dtype": None}}, "tensor 'a' has dtype None"),
        ({"a": F32_2X3 | {"shape": [2, 3.0]}}, "tensor 'a' has shape [2, 3.0]"),
        ({"a": F32_2X3 | {"shape": [True, 6]}}, "tensor 'a' has shape [True, 6]"),
        ({"a": F32_2X3 | {"shape": [1] * 5}}, "tensor 'a' has shape [1, 1, 1, 1, 1]"),
        ({"a": F32_2X3 | {"shape": [1 << 62, 1 << 62]}}, "tensor 'a' has 24 bytes, but"),
        ({"a": 5}, "tensor 'a' has dtype None"),
        ([], "its header is no JSON object"),
        (b"{", "its header is no JSON"),
        (b"[" * 100_000, "its header is no JSON"),
        (b"", "its header would end at byte 8"),
    ],
)
def test_an_impossible_header_is_refused_by_name(tmp_path, header, words):
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(ModelFileError) as error:
        open_safetensors(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_another_file_is_none(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ModelFileError, match="no safetensors file"):
        open_safetensors(tmp_path / "x")


def test_a_file_that_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        open_safetensors(tmp_path / "x")

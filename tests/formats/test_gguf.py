import mmap
import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import TensorInfo, open_gguf
from ollama_zmq.formats.gguf_header import readable
from ollama_zmq.formats.quants import QuantType
from tests.models_tiny import add_vocabulary, write_all

ALL_VALUES = {
    "u8": ("add_uint8", 200),
    "i8": ("add_int8", -100),
    "u16": ("add_uint16", 60000),
    "i16": ("add_int16", -30000),
    "u32": ("add_uint32", 4_000_000_000),
    "i32": ("add_int32", -2_000_000_000),
    "u64": ("add_uint64", 2**63),
    "i64": ("add_int64", -(2**62)),
    "f32": ("add_float32", 0.5),
    "f64": ("add_float64", 0.1),
    "bool": ("add_bool", True),
    "text": ("add_string", "čau 🎉"),
}


@pytest.fixture
def small(tmp_path):
    """A file with a pair of each kind and three tensors; tensor bytes begin at a multiple of 64."""
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "llama")
    writer.add_custom_alignment(64)
    for key, (add, value) in ALL_VALUES.items():
        getattr(writer, add)(key, value)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_array("flags", [True, False])
    writer.add_array("words", ["a", "", "ž"])
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    writer.add_tensor("blocks", np.zeros((2, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    write_all(writer)
    return tmp_path / "small.gguf"


def header(n_tensors=0, n_pairs=0, body=b"", version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs) + body


def text(value):
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, raw):
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name=b"w", dims=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.fixture
def refusal(tmp_path):
    """Function: write bytes, open them, return the message of the refusal without the path."""

    def refused(raw):
        path = tmp_path / "bad.gguf"
        path.write_bytes(raw)
        with pytest.raises(ModelFileError) as caught:
            open_gguf(path)
        assert str(caught.value).startswith(f"{path}: ")
        return str(caught.value).removeprefix(f"{path}: ")

    return refused


def test_every_scalar_reads_back(small):
    with open_gguf(small) as file:
        found = {key: file.metadata[key] for key in ALL_VALUES}
        assert found == {key: value for key, (_, value) in ALL_VALUES.items()}
        assert found["bool"] is True
        assert (file.version, file.architecture) == (3, "llama")


def test_arrays_read_back_and_know_their_length_first(small):
    with open_gguf(small) as file:
        assert file.metadata.array_length("words") == 3
        assert file.metadata["words"] == ["a", "", "ž"]
        assert file.metadata["words"] is file.metadata["words"]
        assert file.metadata["numbers"].tolist() == [1, 2, 3]
        assert file.metadata["floats"].tolist() == [0.5, 1.5]
        assert file.metadata["flags"].tolist() == [True, False]
        assert file.metadata.array_length("numbers") == 3
        assert file.metadata.array_length("text") is None


def test_metadata_is_a_mapping_in_file_order(small):
    with open_gguf(small) as file:
        keys = list(file.metadata)
        assert keys[:3] == ["general.architecture", "general.alignment", "u8"]
        assert len(file.metadata) == len(keys)
        assert "words" in file.metadata
        assert file.metadata.get("absent") is None


def test_tensors_are_row_major_in_file_order_with_absolute_offsets(small):
    raw = small.read_bytes()
    with open_gguf(small) as file:
        assert [(t.name, t.type, t.shape, t.nbytes) for t in file.tensors.values()] == [
            ("matrix", QuantType.F32, (3, 4), 48),
            ("vector", QuantType.F16, (5,), 10),
            ("blocks", QuantType.Q8_0, (2, 32), 68),
        ]
        assert isinstance(file.tensors["matrix"], TensorInfo)
        assert all(t.offset % 64 == 0 for t in file.tensors.values())
        assert raw[file.tensors["matrix"].offset :][:48] == np.arange(12, dtype=np.float32).tobytes()
        assert file.n_parameters == 12 + 5 + 64


@pytest.mark.parametrize("padding", range(32))
def test_tensor_data_begins_at_the_next_multiple(tmp_path, padding):
    writer = gguf.GGUFWriter(str(tmp_path / "padded.gguf"), "llama")
    writer.add_name("x" * padding)
    writer.add_tensor("w", np.arange(1, 9, dtype=np.float32))
    write_all(writer)
    with open_gguf(tmp_path / "padded.gguf") as file:
        assert np.frombuffer(file.data("w"), np.float32).tolist() == list(range(1, 9))


def test_data_is_a_read_only_view_that_outlives_the_file(small):
    with open_gguf(small) as file:
        view = file.data("matrix")
    assert view.readonly
    assert view.format == "B"
    np.testing.assert_array_equal(np.frombuffer(view, np.float32), np.arange(12))


def test_an_unknown_tensor_is_named(small):
    with open_gguf(small) as file, pytest.raises(ModelFileError, match=r"no tensor 'output\.weight'"):
        file.data("output.weight")


def test_a_vocabulary_without_tensors_is_a_file(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "v.gguf"), "llama")
    n_tokens = add_vocabulary(writer)
    write_all(writer)
    with open_gguf(tmp_path / "v.gguf") as file:
        assert file.tensors == {}
        assert file.metadata.array_length("tokenizer.ggml.tokens") == n_tokens


def test_version_2_is_read_like_3(tmp_path):
    path = tmp_path / "v2.gguf"
    path.write_bytes(
        header(1, 1, pair(b"k", 4, struct.pack("<I", 7)) + tensor(), version=2).ljust(96, b"\0") + bytes(16)
    )
    with open_gguf(path) as file:
        assert (file.version, dict(file.metadata)) == (2, {"k": 7})


def test_strings_that_are_not_utf8_keep_their_bytes(tmp_path):
    odd = [b"\xff\xfe", b"\xed\xa0\x80", b"ok", b"\xc3"]
    body = pair(b"t", 9, struct.pack("<IQ", 8, 4) + b"".join(map(text, odd)))
    (tmp_path / "odd.gguf").write_bytes(header(0, 1, body))
    with open_gguf(tmp_path / "odd.gguf") as file:
        assert [token.encode("utf-8", "surrogateescape") for token in file.metadata["t"]] == odd


def test_arrays_are_decoded_only_when_asked_for(tmp_path, monkeypatch):
    """128k tokens and 280k merges: opening reads their lengths and not their text."""
    words = b"".join(text(b"token%d" % i) for i in range(128_000))
    body = pair(b"tokens", 9, struct.pack("<IQ", 8, 128_000) + words)
    (tmp_path / "v.gguf").write_bytes(header(0, 1, body))
    slices = []

    class Counting(mmap.mmap):
        def __getitem__(self, key):
            slices.append(key)
            return super().__getitem__(key)

    monkeypatch.setattr("ollama_zmq.formats.gguf.mmap.mmap", Counting)
    with open_gguf(tmp_path / "v.gguf") as file:
        assert len(slices) == 1
        assert file.metadata["tokens"][127_999] == "token127999"


def test_a_file_that_is_no_gguf_is_refused(refusal, tmp_path):
    assert refusal(b"PK\x03\x04 zip") == "not a GGUF file: it begins with b'PK\\x03\\x04', not b'GGUF'"
    assert refusal(b"") == "not a GGUF file: it begins with b'', not b'GGUF'"
    with pytest.raises(ModelFileError, match=r"absent\.gguf: cannot be read: No such file or directory"):
        open_gguf(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="not a file"):
        open_gguf(tmp_path)


def test_other_versions_and_byte_orders_are_refused_by_name(refusal):
    assert refusal(header(version=1)) == "GGUF version 1 is not supported, only 2 and 3: convert the model again"
    assert refusal(header(version=4)).startswith("GGUF version 4 is not supported")
    assert refusal(b"GGUF" + struct.pack(">IQQ", 3, 0, 0)).startswith("big-endian GGUF files are not supported")


def test_absurd_counts_are_refused_before_memory_is_touched(refusal):
    assert refusal(header(n_tensors=2**63)).startswith(f"{2**63} tensors do not fit in the remaining 0 bytes")
    assert refusal(header(n_pairs=2**64 - 1)).startswith(f"{2**64 - 1} metadata pairs do not fit")
    assert "the key of metadata pair 0 needs 1099511627776 bytes" in refusal(
        header(0, 1, struct.pack("<Q", 2**40) + bytes(99))
    )
    strings = pair(b"t", 9, struct.pack("<IQ", 8, 2**60))
    assert refusal(header(0, 1, strings)).startswith(f"{2**60} elements of metadata 't' do not fit")
    numbers = pair(b"n", 9, struct.pack("<IQ", 12, 2**61) + bytes(64))
    assert refusal(header(0, 1, numbers)).startswith(f"{2**61} elements of metadata 'n' do not fit")
    long_string = pair(b"t", 9, struct.pack("<IQ", 8, 2) + text(b"a") + struct.pack("<Q", 2**63))
    assert refusal(header(0, 1, long_string)).startswith("truncated header: metadata 't' ends at")


def test_unknown_value_types_are_refused(refusal):
    assert refusal(header(0, 1, pair(b"k", 13, b"\0" * 8))) == "metadata 'k' has unknown value type 13"
    assert refusal(header(0, 1, pair(b"k", 9, struct.pack("<IQ", 99, 0)))) == "metadata 'k' has unknown element type 99"
    nested = pair(b"k", 9, struct.pack("<IQ", 9, 0))
    assert refusal(header(0, 1, nested)) == "metadata 'k' is an array of arrays, which is not supported"


def test_duplicates_are_refused(refusal):
    twice = pair(b"k", 4, bytes(4)) * 2
    assert refusal(header(0, 2, twice)) == "metadata key 'k' appears twice"
    assert refusal(header(2, 0, tensor() + tensor() + bytes(200))) == "tensor 'w' appears twice"


def test_bad_alignment_is_refused(refusal):
    for value in (0, 24):
        body = pair(b"general.alignment", 4, struct.pack("<I", value))
        assert refusal(header(0, 1, body)) == f"general.alignment is {value}, expected a power of two"
    body = pair(b"general.alignment", 8, text(b"32"))
    assert refusal(header(0, 1, body)) == "general.alignment is '32', expected a power of two"
    crooked = header(1, 0, tensor(offset=8)) + bytes(200)
    assert refusal(crooked) == "tensor 'w' begins at 8, which is not a multiple of 32"


def test_tensors_that_cannot_be_are_refused_by_name(refusal):
    assert refusal(header(1, 0, tensor(kind=77) + bytes(99))).startswith("tensor 'w': unknown tensor type 77")
    assert refusal(header(1, 0, tensor(kind=4) + bytes(99))).startswith("tensor 'w': tensor type 4 (Q4_2) was removed")
    assert refusal(header(1, 0, tensor(dims=(33,), kind=2) + bytes(99))) == (
        "tensor 'w': row of 33 elements is not a multiple of Q4_0's block of 32"
    )
    assert refusal(header(1, 0, tensor(dims=(1, 1, 1, 1, 1)) + bytes(99))) == "tensor 'w' has 5 dimensions, more than 4"
    assert refusal(header(1, 0, tensor(dims=(4, 0)) + bytes(99))) == "tensor 'w' has no elements: its shape is (0, 4)"


def test_missing_tensor_bytes_are_counted(small, refusal):
    raw = small.read_bytes()
    end = raw.index(struct.pack("<f", 11.0)) + 4  # of the first tensor
    message = refusal(raw[:end])
    needed = end + 16 + 64 + 64 + 4  # padding, the second tensor padded, the third
    assert message == (
        f"truncated: {needed - end} bytes of tensor data are missing ({end} of {needed}): download it again"
    )


def test_a_tensor_offset_beyond_64_bits_of_file_is_missing_bytes(refusal):
    message = refusal(header(1, 0, tensor(dims=(2**62, 2**62), offset=2**63)) + bytes(99))
    assert message.startswith("truncated: ")


def test_every_truncation_is_refused_and_none_crashes(small, refusal):
    raw = small.read_bytes()
    with open_gguf(small) as file:
        last = max(file.tensors.values(), key=lambda t: t.offset)
        needed = last.offset + last.nbytes
    for length in range(needed):
        assert refusal(raw[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(body=st.binary(max_size=400), n_tensors=st.integers(0, 3), n_pairs=st.integers(0, 3))
def test_random_headers_never_crash(tmp_path, body, n_tensors, n_pairs):
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(header(n_tensors, n_pairs, body))
    open_or_refuse(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(data=st.data())
def test_flipped_bytes_never_crash(tmp_path, small, data):
    raw = bytearray(small.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(4, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.gguf"
    path.write_bytes(raw)
    open_or_refuse(path)


def open_or_refuse(path):
    """Open *path* and read all of it, or be refused with a ModelFileError; nothing else may happen."""
    try:
        with open_gguf(path) as file:
            for key in file.metadata:
                assert file.metadata[key] is not None
            for name, info in file.tensors.items():
                assert len(file.data(name)) == info.nbytes
    except ModelFileError:
        return


def test_a_string_that_is_not_utf_8_can_be_shown(tmp_path):
    body = pair(b"k\xff", 8, text(b"caf\xe9")) + pair(b"tokens", 9, struct.pack("<IQ", 8, 1) + text(b"\xe2\x96"))
    (tmp_path / "x.gguf").write_bytes(header(n_pairs=2, body=body))
    with open_gguf(tmp_path / "x.gguf") as file:
        assert file.metadata["k\ufffd"] == "caf\ufffd"
        assert file.metadata["tokens"][0].encode("utf-8", "surrogateescape") == b"\xe2\x96"
        assert readable(file.metadata["tokens"][0]) == "\ufffd"


@pytest.mark.parametrize(
    ("counts", "named"),
    [({"n_pairs": 65_537}, "65537 metadata pairs"), ({"n_tensors": 65_537}, "65537 tensors")],
)
def test_more_pairs_or_tensors_than_any_file_has_are_refused(tmp_path, counts, named):
    (tmp_path / "x.gguf").write_bytes(header(**counts) + bytes(8_000_000))
    with pytest.raises(ModelFileError, match=f"{named}, more than 65536"):
        open_gguf(tmp_path / "x.gguf")


def test_names_have_a_largest_length(tmp_path):
    (tmp_path / "x.gguf").write_bytes(header(n_pairs=1, body=pair(b"k" * 65_535, 7, b"\1")))
    with open_gguf(tmp_path / "x.gguf") as gguf:
        assert gguf.metadata["k" * 65_535] is True
    (tmp_path / "x.gguf").write_bytes(header(n_pairs=1, body=pair(b"k" * 65_536, 7, b"\1")))
    with pytest.raises(ModelFileError, match="the key of metadata pair 0 has 65536 bytes, more than 65535"):
        open_gguf(tmp_path / "x.gguf")

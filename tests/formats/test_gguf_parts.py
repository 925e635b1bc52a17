"""A model in several files is the model in one."""

import gguf
import numpy as np
import pytest

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.formats.gguf_parts import is_part, joined

VALUES = {f"blk.{i}.x.weight": np.full((2, 3), i, np.float32) for i in range(4)}


def write_part(path, number, count, names):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", len(VALUES))
    if number == 0:
        writer.add_string("general.name", "tiny")
    for name in names:
        writer.add_tensor(name, VALUES[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def parts(tmp_path):
    names = list(VALUES)
    shares = (names[:1], names[1:3], names[3:])
    return {f"m-0000{i + 1}-of-00003.gguf": write_part(tmp_path / f"{i}", i, 3, shares[i]) for i in range(3)}


def test_parts_in_any_order_are_one_file(parts, tmp_path):
    target = tmp_path / "whole.gguf"
    target.write_bytes(b"".join(joined(dict(reversed(parts.items())))))
    with open_gguf(target) as whole:
        assert list(whole.tensors) == list(VALUES)
        assert whole.metadata["general.name"] == "tiny"
        assert not is_part(whole)
        for name, values in VALUES.items():
            assert bytes(whole.data(name)) == values.tobytes()


def without(parts, name):
    return {key: path for key, path in parts.items() if key != name}


FIRST, SECOND = "m-00001-of-00003.gguf", "m-00002-of-00003.gguf"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda parts, at: without(parts, SECOND), f"{FIRST}: of 3 parts number 2 missing"),
        (lambda parts, at: parts | {"again.gguf": parts[SECOND]}, "again.gguf: part 2 of 3 is there twice"),
        (
            lambda parts, at: parts | {SECOND: write_part(at / "x", 1, 4, ())},
            f"{SECOND}: a part of another model than {FIRST}",
        ),
        (
            lambda parts, at: parts | {SECOND: write_part(at / "x", 1, 3, ("blk.0.x.weight",))},
            f"{SECOND}: tensor 'blk.0.x.weight' stands in another part too",
        ),
        (lambda parts, at: parts | {SECOND: write_part(at / "x", 1, 3, ())}, "split.tensors.count is 4, but the parts"),
        (
            lambda parts, at: parts | {SECOND: write_part(at / "x", 7, 3, ())},
            "split.no is 7 of split.count 3",
        ),
    ],
)
def test_what_is_wrong_with_parts_is_named(parts, tmp_path, spoil, words):
    with pytest.raises(ModelFileError) as error:
        list(joined(spoil(parts, tmp_path)))
    assert words in str(error.value)


def test_a_part_that_is_damaged_is_named_as_its_owner_knows_it(parts, tmp_path):
    (tmp_path / "bad").write_bytes(b"rubbish")
    with pytest.raises(ModelFileError, match=rf"^{SECOND}: not a GGUF file"):
        list(joined(parts | {SECOND: tmp_path / "bad"}))

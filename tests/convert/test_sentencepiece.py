"""tokenizer.model: a protocol buffer, read without its library."""

import struct

import pytest

from ollama_zmq.convert.sentencepiece import BYTE_PAIRS, UNIGRAM, read_sentencepiece
from ollama_zmq.errors import ModelFileError


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def piece(text, score, kind=None):
    return field(1, field(1, text.encode()) + field(2, score) + (b"" if kind is None else field(3, kind)))


def test_pieces_scores_and_kinds_come_in_order():
    raw = piece("<unk>", 0.0, 2) + piece("▁the", -1.5) + piece("<0x0A>", 0.0, 6) + field(2, field(3, BYTE_PAIRS))
    model = read_sentencepiece(raw, "tokenizer.model")
    assert (model.texts, model.scores, model.kinds) == (["<unk>", "▁the", "<0x0A>"], [0.0, -1.5, 0.0], [2, 1, 6])
    assert (model.kind, model.puts_space, model.joins_spaces) == (BYTE_PAIRS, True, True)


def test_the_normalizer_says_what_happens_to_spaces_and_characters():
    raw = piece("a", 0.0) + field(3, field(1, b"nfkc") + field(2, b"\x01\x02") + field(3, 0) + field(4, 0))
    model = read_sentencepiece(raw, "tokenizer.model")
    assert (model.kind, model.characters) == (UNIGRAM, b"\x01\x02")
    assert (model.puts_space, model.joins_spaces) == (False, False)


def test_fields_that_nobody_knows_are_stepped_over():
    raw = field(90, 5) + field(91, b"x") + field(92, 1.0) + varint(93 << 3 | 1) + bytes(8) + piece("a", 0.0)
    assert read_sentencepiece(raw, "tokenizer.model").texts == ["a"]


@pytest.mark.parametrize(
    "raw", [b"", b"\x0a\x05ab", b"\xff" * 30, b"\x0b", field(1, 5), field(1, field(2, b"ab")), field(2, field(3, b"x"))]
)
def test_rubbish_is_refused_by_name(raw):
    with pytest.raises(ModelFileError, match=r"tokenizer\.model: no SentencePiece model"):
        read_sentencepiece(raw, "tokenizer.model")

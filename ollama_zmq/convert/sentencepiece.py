"""``tokenizer.model``: the pieces of a SentencePiece vocabulary, a protocol buffer.

    1 repeated piece {1 text, 2 score float, 3 kind}     2 trainer {3 model: 1 Unigram, 2 byte pairs}
    3 normalizer {2 table of characters, 3 a space in front, 4 spaces joined}

Fields of other numbers are stepped over. Kinds: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; they
are those of GGUF files.

Source: https://github.com/google/sentencepiece, ``sentencepiece_model.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ollama_zmq.errors import ModelFileError

UNIGRAM, BYTE_PAIRS = 1, 2
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_NBYTES = 10


@dataclass(slots=True)
class SentencePieceModel:
    """What a ``tokenizer.model`` says.

    Attributes:
        kind: ``UNIGRAM`` or ``BYTE_PAIRS``.
        characters: the compiled table that text is replaced by, empty where there is none.
    """

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    kind: int = UNIGRAM
    characters: bytes = b""
    puts_space: bool = True
    joins_spaces: bool = True


def read_sentencepiece(raw: bytes, name: str) -> SentencePieceModel:
    """Read the file's bytes; *name* stands in errors.

    Raises:
        ModelFileError: it is no such file, or has no pieces.
    """
    model = SentencePieceModel()
    try:
        for number, value in _fields(raw):
            if number == 1:
                _add_piece(model, dict(_fields(_bytes(value))))
            elif number == 2:
                model.kind = int(dict(_fields(_bytes(value))).get(3, UNIGRAM))
            elif number == 3:
                _normalize(model, dict(_fields(_bytes(value))))
    except (ValueError, TypeError, struct.error, IndexError) as error:
        raise ModelFileError(f"{name}: no SentencePiece model: {error}") from None
    if not model.texts:
        raise ModelFileError(f"{name}: no SentencePiece model: it has no pieces")
    return model


def _add_piece(model: SentencePieceModel, fields: dict[int, int | bytes]) -> None:
    model.texts.append(_bytes(fields.get(1, b"")).decode("utf-8", "surrogateescape"))
    model.scores.append(struct.unpack("<f", _bytes(fields.get(2, bytes(4))))[0])
    model.kinds.append(int(fields.get(3, 1)))


def _normalize(model: SentencePieceModel, fields: dict[int, int | bytes]) -> None:
    model.characters = _bytes(fields.get(2, b""))
    model.puts_space = bool(fields.get(3, True))
    model.joins_spaces = bool(fields.get(4, True))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"a number, {value}, where text was expected")
    return value


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number and value; those of fixed length as bytes."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(raw, position)
            yield number, value
            continue
        if wire == BYTES:
            length, position = _varint(raw, position)
        else:
            length = {FIXED64: 8, FIXED32: 4}[wire] if wire in (FIXED64, FIXED32) else -1
        if not 0 <= length <= len(raw) - position:
            raise ValueError(f"field {number} at byte {position} does not end within {len(raw)} bytes")
        yield number, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for n in range(MAX_VARINT_NBYTES):
        byte = raw[position + n]
        value |= (byte & 127) << 7 * n
        if byte < 128:
            return value, position + n + 1
    raise ValueError(f"a number at byte {position} does not end")

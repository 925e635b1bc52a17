"""Laws of WordPiece vocabularies; the published vectors stand in test_tokenizer.py."""

from __future__ import annotations

from typing import Any

import pytest

from ollama_zmq.errors import ModelFileError
from ollama_zmq.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.vocabularies import CONTROL, NORMAL

WORDS = ["▁un", "▁the", "aff", "able", "▁a", "▁!", "▁é", "▁e", "▁中", "▁the!"]


def header(**keys: Any) -> dict[str, Any]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 4 + [NORMAL] * len(WORDS),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    } | {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special=False, parse_special=False)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("unaffable", ["▁un", "aff", "able"]),
        ("unaffabl", ["[UNK]"]),  # a rest that nothing matches spoils the word
        ("the a!", ["▁the", "▁a", "▁!"]),  # a mark is a word of its own
        ("THE\u200d É\x01", ["▁the", "▁e"]),  # lower case, no accents, no control characters
        ("a中a", ["▁a", "▁中", "▁a"]),
        ("[CLS]", ["[UNK]"] * 3),  # a marker in a text is marks and a word
        ("a" * 101, ["[UNK]"]),
        (" \n", []),
    ],
)
def test_words_are_cut_as_bert_cuts_them(text: str, tokens: list[str]) -> None:
    assert tokens_of(load_tokenizer(header()), text) == tokens


def test_a_file_may_keep_case_and_accents() -> None:
    kept = {"normalizer.lowercase": False, "normalizer.strip_accents": False}
    assert tokens_of(load_tokenizer(header(**kept)), "é The") == ["▁é", "[UNK]"]


def test_cls_and_sep_stand_around_a_text() -> None:
    tokenizer = load_tokenizer(header())
    assert tokenizer.encode("a", add_special=True, parse_special=False) == [2, tokenizer.token_id("▁a"), 3]
    assert tokenizer.encode("[SEP]", add_special=False, parse_special=True) == [3]


def test_words_come_back_with_spaces_between_them() -> None:
    tokenizer = load_tokenizer(header())
    assert (
        tokenizer.decode(tokenizer.encode("unaffable the", add_special=True, parse_special=False)) == " unaffable the"
    )


def test_a_normalizer_key_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(ModelFileError, match=r"normalizer\.lowercase: 'no', expected a boolean"):
        load_tokenizer(header(**{"normalizer.lowercase": "no"}))

"""Laws of Unigram vocabularies."""

from __future__ import annotations

import base64
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf import open_gguf
from ollama_zmq.text.tokenizer import Tokenizer, load_tokenizer
from tests.reference import unigram
from tests.text.golden.smollm2_tokens import texts
from tests.text.vocabularies import CONTROL, NORMAL, UNKNOWN

PIECES = {"▁": -3.0, "▁a": -2.0, "b": -3.0, "ab": -2.5, "▁ab": -5.5, "▁▁": -2.0}


def header(**keys: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", *PIECES],
        "tokenizer.ggml.token_type": [CONTROL, CONTROL, UNKNOWN] + [NORMAL] * len(PIECES),
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, *PIECES.values()],
        "tokenizer.ggml.remove_extra_whitespaces": True,
    } | {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def tokens_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special=False, parse_special=False)]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("ab", ["▁a", "b"]),  # -5.0, before ▁ab's and ▁, ab's -5.5
        ("  a   a ", ["▁a", "▁a"]),
        ("xyz", ["▁", "<unk>"]),
        ("<unk></s>", ["▁", "<unk>"]),  # what a user types is no marker
        ("", []),
    ],
)
def test_the_path_with_the_largest_sum_is_taken(text: str, tokens: list[str]) -> None:
    assert tokens_of(load_tokenizer(header()), text) == tokens


def test_spaces_stay_where_the_file_does_not_merge_them() -> None:
    assert tokens_of(load_tokenizer(header(remove_extra_whitespaces=False)), "a  b") == ["▁a", "▁▁", "b"]


def is_composed(text: str) -> bool:
    """Whether no accent of *text* stands by itself: those are where the library leaves SentencePiece."""
    return not any("\u0300" <= c <= "\u036f" for c in unicodedata.normalize("NFC", text))


def test_xlm_roberta_agrees_with_sentence_piece_written_from_its_description(vocabularies_path: Path) -> None:
    with open_gguf(vocabularies_path / "ggml-vocab-nomic-bert-moe.gguf") as file:
        metadata = dict(file.metadata)
    kinds = np.asarray(metadata["tokenizer.ggml.token_type"])
    reference = unigram.Unigram(
        metadata["tokenizer.ggml.tokens"],
        metadata["tokenizer.ggml.scores"],
        np.asarray(metadata["tokenizer.ggml.precompiled_charsmap"]).tobytes(),
        np.flatnonzero((kinds != CONTROL) & (kinds != UNKNOWN)).tolist(),
        unknown=3,
    )
    tokenizer = load_tokenizer(metadata)
    given = [text for text in texts() if is_composed(text)]
    assert len(given) > 250
    for text in given:
        found, wanted = tokenizer.encode(text, add_special=False, parse_special=False), reference.token_ids(text)
        assert found == wanted or sorted(found) == sorted(wanted), text  # "==", "=" and "=", "==" have the same sum


def test_a_table_of_characters_may_be_letters_of_base64(vocabularies_path: Path) -> None:
    """As Ollama's converter writes it."""
    with open_gguf(vocabularies_path / "ggml-vocab-nomic-bert-moe.gguf") as file:
        table = np.asarray(file.metadata["tokenizer.ggml.precompiled_charsmap"]).tobytes()
    letters = list(base64.b64encode(table).decode())
    assert tokens_of(load_tokenizer(header(precompiled_charsmap=letters)), "ａ") == ["▁a"]  # noqa: RUF001


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": None}, "tokenizer.ggml.scores"),
        ({"precompiled_charsmap": ["?"]}, "precompiled_charsmap: no base64"),
        ({"precompiled_charsmap": np.ones(5, np.uint8)}, "precompiled_charsmap: no table"),
        ({"precompiled_charsmap": "abc"}, "precompiled_charsmap: str"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    metadata = {key: value for key, value in header(**change).items() if value is not None}
    with pytest.raises(ModelFileError, match=named):
        load_tokenizer(metadata)

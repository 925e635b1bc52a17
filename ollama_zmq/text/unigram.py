"""Unigram vocabularies (``tokenizer.ggml.model = t5``: XLM-R, bge-m3, multilingual-e5, T5): the most probable path.

    text -> replaced by the file's own table of characters (``precompiled_charsmap``)
         -> spaces become ▁, several of them one, and one stands in front
         -> of all ways to cut the text into tokens the one whose scores have the largest sum

What no token matches is one unknown token, however long. Replacing and segmenting are done by the ``tokenizers``
library, which the models' own tokenizers use. It replaces whole graphemes: an accent that no single character holds
together with its letter is lost, where SentencePiece and llama.cpp, which replace the longest prefix, keep it (in 11 of
335 texts made to be difficult).

Source: Kudo 2018, "Subword Regularization", ACL; Kudo & Richardson 2018, "SentencePiece", EMNLP.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ollama_zmq.errors import ModelFileError
from ollama_zmq.text.vocabulary import HIDDEN, Defaults, Vocabulary, flag

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

DEFAULTS = Defaults(eos_id=1, unk_id=2, add_space_prefix=True)
SPACE = "▁"
UNKNOWN = "\uffff\uffff"  # characters that no text has stand for what no token matches
CHARACTERS = "tokenizer.ggml.precompiled_charsmap"


class Unigram:
    """Segments text into the tokens whose scores have the largest sum.

    Raises:
        ModelFileError: there are no scores, or the table of characters is none.
    """

    def __init__(self, vocabulary: Vocabulary, metadata: Mapping[str, object]) -> None:
        self._normalized = _normalizer(metadata)
        self._merges_spaces = flag(metadata, "tokenizer.ggml.remove_extra_whitespaces", False)
        self._puts_space = vocabulary.add_space_prefix
        unknown = vocabulary.unk_id if vocabulary.unk_id is not None else 0
        matched = [i for i, bits in enumerate(vocabulary.attributes) if not bits & HIDDEN]
        self._ids = [unknown, *matched]
        self._engine = _engine(vocabulary, matched)

    def token_ids(self, text: str, *, after_special: bool) -> list[int]:
        """Token ids of plain *text*; each stretch of it begins as a text of its own."""
        spaced = self._spaced(self._normalized(text))
        return [self._ids[i] for i in self._engine.encode_batch_fast([spaced], add_special_tokens=False)[0].ids]

    def piece(self, text: str) -> bytes:
        """The bytes a normal token with this *text* stands for."""
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")

    def _spaced(self, text: str) -> str:
        if self._merges_spaces:
            return "".join(SPACE + word for word in text.split(" ") if word)
        words = text.lstrip(" ")
        in_front = SPACE if self._puts_space and words else ""
        return (text[: len(text) - len(words)] + in_front + words).replace(" ", SPACE)


def _normalizer(metadata: Mapping[str, object]) -> Callable[[str], str]:
    """Return what replaces characters as the file says; a file without a table replaces none."""
    from tokenizers import normalizers

    table = metadata.get(CHARACTERS)
    if isinstance(table, list) and table and all(isinstance(part, str) for part in table):
        table = np.frombuffer(
            _decoded("".join(table)), np.uint8
        )  # an array of letters, as Ollama's converter writes it
    if table is None or (isinstance(table, np.ndarray | list) and not len(table)):
        return str
    if not isinstance(table, np.ndarray) or table.dtype not in (np.uint8, np.int8):
        raise ModelFileError(f"{CHARACTERS}: {type(table).__name__}, expected an array of bytes", key=CHARACTERS)
    try:
        replaced: Callable[[str], str] = normalizers.Precompiled(table.tobytes()).normalize_str
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"{CHARACTERS}: no table of characters: {error}", key=CHARACTERS) from error
    return replaced


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise ModelFileError(f"{CHARACTERS}: no base64: {error}", key=CHARACTERS) from None


def _engine(vocabulary: Vocabulary, matched: list[int]) -> Engine:
    from tokenizers import Tokenizer, models

    if not vocabulary.scores:
        key = "tokenizer.ggml.scores"
        raise ModelFileError(f"{key} is missing: a Unigram vocabulary is nothing without it", key=key)
    least = min((vocabulary.scores[i] for i in matched), default=0.0)
    pieces = [(UNKNOWN, least), *((vocabulary.texts[i], vocabulary.scores[i]) for i in matched)]
    return Tokenizer(models.Unigram(pieces, 0, False))

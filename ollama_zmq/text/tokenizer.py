"""The tokenizer of a model, built from the ``tokenizer.ggml.*`` keys of its GGUF header.

    tokenizer.ggml.model    gpt2, gemma4 -> byte pairs (bpe.py)    llama -> SentencePiece (spm.py)
                            bert -> WordPiece (wordpiece.py)       t5    -> Unigram (unigram.py)

All cut special tokens out first (special.py), then segment what lies between. The ids are llama.cpp's: of 1,524
random texts in fifteen vocabularies those that differ hold characters younger than its Unicode tables, or, for
deepseek-llm, an ideographic space, where we follow the model's own ``tokenizer.json``.

A rendered prompt holds a user's words between control tokens, and words that name a control token become one, as in
Ollama and llama.cpp: a user can close his turn and open a system's. :meth:`Tokenizer.literal` keeps words words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import structlog

from ollama_zmq.errors import ModelFileError
from ollama_zmq.printable import whole_characters
from ollama_zmq.text.bpe import BytePairs
from ollama_zmq.text.pretokenizers import pre_tokenizer
from ollama_zmq.text.special import SpecialTokens
from ollama_zmq.text.spm import DEFAULTS as SPM_DEFAULTS
from ollama_zmq.text.spm import SentencePiece
from ollama_zmq.text.unigram import DEFAULTS as UNIGRAM_DEFAULTS
from ollama_zmq.text.unigram import Unigram
from ollama_zmq.text.vocabulary import BYTE, HIDDEN, NORMAL, USER_DEFINED, Defaults, Vocabulary, string_list
from ollama_zmq.text.wordpiece import DEFAULTS as WORDPIECE_DEFAULTS
from ollama_zmq.text.wordpiece import WordPiece

log = structlog.get_logger()

KINDS = ("gpt2", "gemma4", "llama", "bert", "t5")
NO_VOCABULARY = (None, "none", "no_vocab")
GUARD = "\udfff"  # a lone surrogate, which no text from outside has: it splits a marker and is taken out again


class Segmenter(Protocol):
    """Plain text to token ids, and a normal token's text to bytes."""

    def token_ids(self, text: str, *, after_special: bool) -> list[int]: ...

    def piece(self, text: str) -> bytes: ...


class Tokenizer:
    """Text to token ids and back. Safe to use from several threads."""

    def __init__(self, vocabulary: Vocabulary, segmenter: Segmenter) -> None:
        self._vocabulary = vocabulary
        self._segmenter = segmenter
        self._special = SpecialTokens(vocabulary)
        self._pieces: dict[int, bytes] = {}
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.eot_id = vocabulary.eot_id
        self.end_ids = vocabulary.end_ids
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.add_space_prefix = vocabulary.add_space_prefix
        self.vocab_size = len(vocabulary)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of *text*.

        Args:
            add_special: put BOS in front and EOS behind where the model wants them.
            parse_special: take ``<|im_end|>`` and the like for the tokens they name, not for letters. Lone
                surrogates, which no UTF-8 has, are read as U+FFFD.
        """
        text = text if text.isascii() else GUARD.join(map(whole_characters, text.split(GUARD)))
        token_ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for fragment in self._special.split(text, parse_special=parse_special):
            if isinstance(fragment, int):
                token_ids.append(fragment)
            else:
                token_ids += self._segmenter.token_ids(fragment.replace(GUARD, ""), after_special=after_special)
            after_special = isinstance(fragment, int)
        if add_special and self.add_eos and self.eos_id is not None:
            token_ids.append(self.eos_id)
        return token_ids

    def literal(self, text: str) -> str:
        """*text* for a place in a prompt where it may name control tokens, and :meth:`encode` takes it for letters."""
        return self._special.guarded(whole_characters(text), GUARD)

    @staticmethod
    def shown(prompt: str) -> str:
        """*prompt* without what :meth:`literal` put into it."""
        return prompt.replace(GUARD, "")

    def piece(self, token_id: int) -> bytes:
        """The bytes *token_id* stands for: a control token's are its name, an unused one's none.

        Raises:
            IndexError: there is no such token.
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._make_piece(token_id)
        return piece

    def decode(self, token_ids: Iterable[int], *, show_control: bool = False) -> str:
        """The text of *token_ids*; bytes that are not UTF-8 become U+FFFD.

        Where the model puts a space in front of every text, the first one is taken away.
        """
        shown = [i for i in token_ids if show_control or not self.is_control(i)]
        text = b"".join(map(self.piece, shown))
        if self.add_space_prefix:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    def is_control(self, token_id: int) -> bool:
        """Whether *token_id* is a marker for the model rather than text for a reader."""
        return bool(self._vocabulary.attributes[self._checked(token_id)] & HIDDEN)

    def token_text(self, token_id: int) -> str:
        """The text of *token_id* as the vocabulary stores it."""
        return self._vocabulary.texts[self._checked(token_id)]

    def token_id(self, text: str) -> int | None:
        """The token stored as *text*, if there is one."""
        return self._vocabulary.ids.get(text)

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.vocab_size:
            raise IndexError(f"token id {token_id} of {self.vocab_size}")
        return token_id

    def _make_piece(self, token_id: int) -> bytes:
        text, attributes = self.token_text(token_id), self._vocabulary.attributes[token_id]
        if attributes & (HIDDEN | USER_DEFINED):
            return text.encode("utf-8", "surrogateescape")
        if attributes & NORMAL:
            return self._segmenter.piece(text)
        return _byte_of(text) if attributes & BYTE else b""


def has_vocabulary(metadata: Mapping[str, object]) -> bool:
    """Whether a GGUF file has tokens. One that has none runs on token ids alone."""
    return metadata.get("tokenizer.ggml.model") not in NO_VOCABULARY


def load_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that a GGUF header describes.

    Raises:
        ModelFileError: the header has no vocabulary, or one of a kind, pre-tokenizer or shape we do not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        vocabulary = Vocabulary.from_metadata(metadata, SPM_DEFAULTS)
        return Tokenizer(vocabulary, SentencePiece(vocabulary))
    if kind == "bert":
        vocabulary = Vocabulary.from_metadata(_around(metadata), WORDPIECE_DEFAULTS)
        return Tokenizer(vocabulary, WordPiece(vocabulary, metadata))
    if kind == "t5":
        vocabulary = Vocabulary.from_metadata(metadata, UNIGRAM_DEFAULTS)
        return Tokenizer(vocabulary, Unigram(vocabulary, metadata))
    if kind in ("gpt2", "gemma4"):
        return _byte_pairs(metadata, "gemma4" if kind == "gemma4" else _pre_tokenizer_name(metadata))
    if not has_vocabulary(metadata):
        raise ModelFileError(f"tokenizer.ggml.model={kind!r}: the file has no vocabulary; use the model's own GGUF")
    raise ModelFileError(
        f"tokenizer.ggml.model={kind!r}: unsupported kind of vocabulary; use a model with one of {', '.join(KINDS)}",
        kind=kind,
    )


def _around(metadata: Mapping[str, object]) -> Mapping[str, object]:
    """*metadata* with BERT's names of what stands around a text, CLS and SEP, as those of other models."""
    names = {"bos_token_id": ("cls_token_id",), "eos_token_id": ("seperator_token_id", "separator_token_id")}
    found = {
        f"tokenizer.ggml.{name}": metadata[f"tokenizer.ggml.{theirs}"]
        for name, spellings in names.items()
        for theirs in spellings
        if f"tokenizer.ggml.{theirs}" in metadata
    }
    return {**metadata, **found}


def _byte_pairs(metadata: Mapping[str, object], pre: str) -> Tokenizer:
    rules = pre_tokenizer(pre)
    vocabulary = Vocabulary.from_metadata(metadata, Defaults(add_bos=rules.add_bos))
    merges = string_list(metadata, "tokenizer.ggml.merges")
    return Tokenizer(vocabulary, BytePairs(vocabulary, merges, rules))


def _pre_tokenizer_name(metadata: Mapping[str, object]) -> str:
    """``tokenizer.ggml.pre``; a file from before the key existed means "default", as everywhere."""
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        log.warning("tokenizer.pre_missed", using="default")
        return "default"
    return str(pre)


def _byte_of(text: str) -> bytes:
    """The byte a token like ``<0xE2>`` stands for; none when it is not written so."""
    try:
        return bytes([int(text[3:5], 16)])
    except ValueError:
        return b""

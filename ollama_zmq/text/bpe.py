"""Byte pair encoding: vocabularies with merges (GPT-2, Llama 3, Qwen, DeepSeek, SmolLM, Gemma 4, ...).

    text -> words (pretokenizers.py) -> bytes, each written as one printable character -> merges, lowest rank first

Merging is done by the ``tokenizers`` library, built from the header's vocabulary and merges: 0.3 s for the 128k
tokens and 280k merges of Llama 3. Decoding needs no library: a token's text is its bytes in GPT-2's alphabet.

Source: Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units", ACL; the
byte alphabet is Radford et al. 2019's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ollama_zmq.errors import ModelFileError
from ollama_zmq.text.pretokenizers import PreTokenizer
from ollama_zmq.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine
    from tokenizers.pre_tokenizers import PreTokenizer as Cutter

SPACE = "▁"
_NUMBER = re.compile(r"\d+(?!\w)")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_alphabet()


class BytePairs:
    """Segments text by the merges of its vocabulary.

    Raises:
        ModelFileError: a merge is not two tokens whose union is a token.
    """

    def __init__(self, vocabulary: Vocabulary, merges: list[str], rules: PreTokenizer) -> None:
        self._byte_level = rules.byte_level
        self._groups_digits = rules.groups_digits
        self._engine = _engine(vocabulary, merges, rules)

    def token_ids(self, text: str, *, after_special: bool) -> list[int]:
        """Token ids of plain *text*; a special token before it changes nothing."""
        text = text if self._byte_level else text.replace(" ", SPACE)
        given = _digit_groups(text) if self._groups_digits else text
        batch = self._engine.encode_batch_fast(  # unlike encode it lets other threads run meanwhile
            [given], is_pretokenized=self._groups_digits, add_special_tokens=False
        )
        found: list[int] = batch[0].ids
        return found

    def piece(self, text: str) -> bytes:
        """The bytes a normal token with this *text* stands for."""
        if not self._byte_level:
            return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
        try:
            return bytes([BYTE_OF_CHARACTER[character] for character in text])
        except KeyError:  # a token that was added as plain text
            return text.encode("utf-8", "surrogateescape")


def words(text: str, rules: PreTokenizer) -> list[str]:
    """Cut *text* as *rules* do, before any merge: words in GPT-2's byte alphabet, or as they are without it."""
    cutter = _cutter(rules)
    pieces = _digit_groups(text) if rules.groups_digits else [text]
    return [word for piece in pieces for word, _ in cutter.pre_tokenize_str(piece)]


def _digit_groups(text: str) -> list[str]:
    """*text* in pieces, its numbers cut into groups of three from the right. A number ends where a word would."""
    pieces, start = [], 0
    for number in _NUMBER.finditer(text):
        first, end = number.span()
        for cut in (first, *range(end - 3 * ((end - first - 1) // 3), end, 3), end):
            pieces += [text[start:cut]] if cut > start else []
            start = cut
    return [*pieces, text[start:]] if start < len(text) else pieces


def _pairs(merges: list[str], byte_level: bool) -> list[tuple[str, str]]:
    """The two halves of each merge. Only in plain text, where a space is a character, may the first begin with one."""
    if byte_level:
        halves: list[Any] = [tuple(merge.split(" ")) for merge in merges]  # the library refuses what is no pair
        return halves
    return [(merge[:at], merge[at + 1 :]) for merge in merges for at in [merge.find(" ", 1)]]


def _engine(vocabulary: Vocabulary, merges: list[str], rules: PreTokenizer) -> Engine:
    from tokenizers import Tokenizer, models

    try:
        model = models.BPE(
            vocabulary.ids,
            _pairs(merges, rules.byte_level),
            ignore_merges=rules.ignore_merges,
            byte_fallback=not rules.byte_level,
        )
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"tokenizer.ggml.merges: {error}", n_merges=len(merges)) from error
    engine = Tokenizer(model)
    engine.pre_tokenizer = _cutter(rules)
    return engine


def _cutter(rules: PreTokenizer) -> Cutter:
    from tokenizers import Regex, pre_tokenizers

    steps: list[Cutter] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    if rules.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)

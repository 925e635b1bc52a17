"""SentencePiece vocabularies (Llama 2, Phi-3, Gemma, Mistral 7B): merge the best-scored pair until none is left.

    text -> spaces become ▁ -> one symbol per character
    repeat: of all neighbours whose union is a token, join the one with the highest score, leftmost on a tie
    a character that is no token becomes its UTF-8 bytes, <0xE2> <0x96> ...

Source: Kudo & Richardson 2018, "SentencePiece", EMNLP (its BPE mode), as in llama.cpp's ``llm_tokenizer_spm``.

The merge runs over a heap. A vocabulary without a token that has ▁ after another character (nearly all) can
never join across the beginning of a word, so each word is merged by itself and remembered: the result is the same,
and a page of English costs little more than looking its words up.
"""

from __future__ import annotations

import heapq
import re

from ollama_zmq.text.vocabulary import Defaults, Vocabulary

DEFAULTS = Defaults(bos_id=1, eos_id=2, unk_id=0, add_bos=True, add_space_prefix=True)
SPACE = "▁"
MAX_REMEMBERED_WORDS = 32_768
MAX_REMEMBERED_LENGTH = 64

_WORD = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")


class SentencePiece:
    """Segments text by the scores of its vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._scores = vocabulary.scores or [0.0] * len(vocabulary)
        self._byte_ids = [self._byte_id(byte) for byte in range(256)]
        self._splits_words = not any(SPACE in text.lstrip(SPACE) for text in vocabulary.texts)
        self._remembered: dict[str, list[int]] = {}

    def token_ids(self, text: str, *, after_special: bool) -> list[int]:
        """Token ids of plain *text*; at the start and after a special token a space is put in front."""
        if after_special and self._vocabulary.add_space_prefix:
            text = " " + text
        text = text.replace(" ", SPACE)
        if not self._splits_words:
            return self._merge(text)
        found: list[int] = []
        for word in _WORD.findall(text):
            found += self._remembered.get(word) or self._remember(word)
        return found

    def piece(self, text: str) -> bytes:
        """The bytes a normal token with this *text* stands for."""
        return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")

    def _remember(self, word: str) -> list[int]:
        token_ids = self._merge(word)
        if len(word) <= MAX_REMEMBERED_LENGTH:
            if len(self._remembered) >= MAX_REMEMBERED_WORDS:
                self._remembered.clear()
            self._remembered[word] = token_ids
        return token_ids

    def _merge(self, text: str) -> list[int]:
        ids, scores = self._vocabulary.ids, self._scores
        symbols = list(text)  # "" once joined to the left
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        heap: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            union = symbols[left] + symbols[right]
            if (token_id := ids.get(union)) is not None:
                heapq.heappush(heap, (-scores[token_id], left, right, union))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, union = heapq.heappop(heap)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != len(union):
                continue
            symbols[left], symbols[right] = union, ""
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
                offer(left, after[left])
            if before[left] >= 0:
                offer(before[left], left)
        return [token_id for symbol in symbols if symbol for token_id in self._ids_of(symbol)]

    def _ids_of(self, symbol: str) -> list[int]:
        token_id = self._vocabulary.ids.get(symbol)
        if token_id is not None:
            return [token_id]
        return [found for byte in symbol.encode() if (found := self._byte_ids[byte]) is not None]

    def _byte_id(self, byte: int) -> int | None:
        return self._vocabulary.ids.get(f"<0x{byte:02X}>", self._vocabulary.unk_id)

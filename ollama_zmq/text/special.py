"""Cutting special tokens out of a text before the rest is segmented.

Control tokens (``<|im_end|>``) are cut out only when the caller trusts the text (``parse_special``: a rendered chat
template, yes; what a user typed, no). User-defined tokens are always cut out. The longest special token is looked
for first, in the whole text, then the next one in what is left, and so on: that is llama.cpp's order, and it differs
from a leftmost-longest scan when special tokens overlap.

A vocabulary may have thousands of special tokens and a prompt a megabyte, so one sweep first finds out which of
them occur at all.
"""

from __future__ import annotations

import re

from ollama_zmq.text.vocabulary import HIDDEN, LSTRIP, RSTRIP, Vocabulary

WHITE_SPACE = " \t\n\v\f\r"  # C's isspace


class SpecialTokens:
    """Finds a vocabulary's special tokens in a text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._order = {vocabulary.texts[token_id]: token_id for token_id in vocabulary.special_ids()}
        self._lengths: dict[str, list[int]] = {}
        for text in self._order:
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        starts = "".join(map(re.escape, self._lengths))
        self._start = re.compile(f"[{starts}]") if starts else None

    def split(self, text: str, *, parse_special: bool) -> list[str | int]:
        """*text* as fragments of plain text and special token ids, in order. No fragment is empty."""
        fragments: list[str | int] = [text] if text else []
        for token_id in self._present(text):
            attributes = self._vocabulary.attributes[token_id]
            if parse_special or not attributes & HIDDEN:
                fragments = [
                    piece
                    for fragment in fragments
                    for piece in ([fragment] if isinstance(fragment, int) else self._cut(fragment, token_id))
                ]
        return fragments

    def guarded(self, text: str, guard: str) -> str:
        """*text* with *guard* behind the first character of each control token's name, so that it is none."""
        for token_id in self._present(text):
            if self._vocabulary.attributes[token_id] & HIDDEN:
                marker = self._vocabulary.texts[token_id]
                text = text.replace(marker, marker[0] + guard + marker[1:])
        return text

    def _present(self, text: str) -> list[int]:
        """Special tokens that occur in *text*, in the order in which they are cut out."""
        if self._start is None:
            return []
        found = set()
        for match in self._start.finditer(text):
            at = match.start()
            found |= {marker for n in self._lengths[match[0]] if (marker := text[at : at + n]) in self._order}
        return [token_id for marker, token_id in self._order.items() if marker in found] if found else []

    def _cut(self, fragment: str, token_id: int) -> list[str | int]:
        text, attributes = self._vocabulary.texts[token_id], self._vocabulary.attributes[token_id]
        pieces: list[str | int] = []
        start = 0
        while (at := fragment.find(text, start)) >= 0:
            left = fragment[start:at]
            if left := left.rstrip(WHITE_SPACE) if attributes & LSTRIP else left:
                pieces.append(left)
            pieces.append(token_id)
            start = at + len(text)
            while attributes & RSTRIP and start < len(fragment) and fragment[start] in WHITE_SPACE:
                start += 1
        if start < len(fragment):
            pieces.append(fragment[start:])
        return pieces

"""Cutting special tokens out of a text before the rest is segmented.

Control tokens (``<|im_end|>``) are cut out only when the caller trusts the text (``parse_special``: a rendered chat
template, yes; what a user typed, no). User-defined tokens are always cut out. The longest special token is looked
for first, in the whole text, then the next one in what is left, and so on: that is llama.cpp's order, and it differs
from a leftmost-longest scan when special tokens overlap.

A vocabulary may have thousands of special tokens and a prompt a megabyte, so one sweep first finds out which of
them occur at all. Most are written ``<...>``, with no such bracket inside: these cannot overlap, their order makes no
difference, and one more sweep cuts them all out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ollama_zmq.text.vocabulary import HIDDEN, LSTRIP, RSTRIP, Vocabulary

_BRACKETED = re.compile("<[^<>]*>")
WHITE_SPACE = " \t\n\v\f\r"  # C's isspace


def _swept(text: str, wanted: Mapping[str, int]) -> list[str | int]:
    """*text* cut at every bracketed name in *wanted*, from left to right."""
    fragments: list[str | int] = []
    start = 0
    for match in _BRACKETED.finditer(text) if wanted else ():
        if (token_id := wanted.get(match[0])) is not None:
            fragments += [text[start : match.start()], token_id] if match.start() > start else [token_id]
            start = match.end()
    return [*fragments, text[start:]] if start < len(text) else fragments


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
        attributes = self._vocabulary.attributes
        wanted = [i for i in self._present(text) if parse_special or not attributes[i] & HIDDEN]
        if all(self._stands_alone(token_id) for token_id in wanted):
            return _swept(text, {self._vocabulary.texts[token_id]: token_id for token_id in wanted})
        fragments: list[str | int] = [text] if text else []
        for token_id in wanted:
            fragments = [
                piece
                for fragment in fragments
                for piece in ([fragment] if isinstance(fragment, int) else self._cut(fragment, token_id))
            ]
        return fragments

    def _stands_alone(self, token_id: int) -> bool:
        """Whether a token can neither overlap another one of its kind nor swallow white space."""
        strips = self._vocabulary.attributes[token_id] & (LSTRIP | RSTRIP)
        return not strips and _BRACKETED.fullmatch(self._vocabulary.texts[token_id]) is not None

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

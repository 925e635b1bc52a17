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
from collections.abc import Mapping, Sequence

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
        wanted = {
            token_id: places
            for token_id, places in self._present(text).items()
            if parse_special or not attributes[token_id] & HIDDEN
        }
        if all(self._stands_alone(token_id) for token_id in wanted):
            return _swept(text, {self._vocabulary.texts[token_id]: token_id for token_id in wanted})
        return self._cut(text, wanted)

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

    def _present(self, text: str) -> dict[int, list[int]]:
        """Where special tokens occur in *text*, by their ids, in the order in which they are cut out."""
        if self._start is None:
            return {}
        found: dict[str, list[int]] = {}
        for match in self._start.finditer(text):
            at = match.start()
            for n in self._lengths[match[0]]:
                if (marker := text[at : at + n]) in self._order:
                    found.setdefault(marker, []).append(at)
        return {token_id: found[marker] for marker, token_id in self._order.items() if marker in found} if found else {}

    def _cut(self, text: str, wanted: Mapping[int, Sequence[int]]) -> list[str | int]:
        """*text* cut at the places in *wanted*, token by token: what an earlier one took, a later one cannot have."""
        taken = bytearray(len(text))
        cuts: list[tuple[int, int, int]] = []
        for token_id, places in wanted.items():
            attributes, n = self._vocabulary.attributes[token_id], len(self._vocabulary.texts[token_id])
            for at in places:
                begin, end = at, at + n
                if taken.find(1, begin, end) >= 0:
                    continue
                while attributes & LSTRIP and begin and not taken[begin - 1] and text[begin - 1] in WHITE_SPACE:
                    begin -= 1
                while attributes & RSTRIP and end < len(text) and not taken[end] and text[end] in WHITE_SPACE:
                    end += 1
                taken[begin:end] = bytes((1,)) * (end - begin)
                cuts.append((begin, end, token_id))
        fragments: list[str | int] = []
        start = 0
        for begin, end, token_id in sorted(cuts):
            fragments += [text[start:begin], token_id] if begin > start else [token_id]
            start = end
        return [*fragments, text[start:]] if start < len(text) else fragments

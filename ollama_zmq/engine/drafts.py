"""Speculative decoding: several tokens are drafted, and one pass through the stages verifies them all.

The drafts come from :mod:`~ollama_zmq.engine.prompt_lookup`. Leviathan et al. 2023, "Fast Inference from Transformers
via Speculative Decoding", say when that pays: a draft of k tokens, each right with probability a, brings

    E(a, k) = (1 + a + ... + a^k)

tokens in a pass of 1 + k rows a sequence, which takes slowdown(1 + k) times as long as one row. The k with the largest
E / slowdown is taken, and none unless it gains ``MIN_SPEEDUP``. The rows are those that plain decoding would compute,
bit for bit, and each is sampled in turn, with the sequence's own random numbers, until one is not what was drafted: so
a draft changes when a token comes, never which.
"""

from __future__ import annotations

from typing import Protocol

from ollama_zmq.engine.pacing import Pacing
from ollama_zmq.engine.prompt_lookup import PromptLookup
from ollama_zmq.engine.sequence import Generation

SIZES = (1, 2, 3, 5, 7, 11, 15)  # k
MIN_SPEEDUP = 1.1


class Drafter(Protocol):
    """Something that drafts."""

    def draft(self, sequence: Generation, most: int, decoding: int) -> tuple[int, ...]:
        """At most *most* tokens that may follow, or none. *decoding* sequences share the stages."""


class PromptLookupDrafter:
    """Drafts from the prompt and the text itself, where the cost model says that they pay."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing

    def draft(self, sequence: Generation, most: int, decoding: int) -> tuple[int, ...]:
        """At most *most* tokens, or none. *decoding* sequences share the stages."""
        if sequence.lookup is None:
            sequence.lookup = PromptLookup(sequence.history)
        sequence.lookup.learn()
        proposal, rate = sequence.lookup.guess(SIZES[-1])
        return tuple(proposal[: self._length(rate, min(most, len(proposal)), decoding)])

    def _length(self, rate: float, most: int, decoding: int) -> int:
        """How many tokens to draft when each is right with probability *rate*."""
        best, best_gain = 0, MIN_SPEEDUP
        if rate < 1.0 - 1.0 / MIN_SPEEDUP:  # not even rows for nothing would pay
            return best
        for k in SIZES:
            gain = expected_tokens(rate, k) / self._pacing.slowdown(decoding, 1 + k) if k <= most else 0.0
            if gain > best_gain:
                best, best_gain = k, gain
        return best


def expected_tokens(rate: float, k: int) -> float:
    """Tokens that a pass brings: those of the draft up to the first wrong one, and one more."""
    return sum(rate**i for i in range(k + 1))

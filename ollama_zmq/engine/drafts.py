"""Guessing what a sequence will say next, so that one pass through the stages may bring several tokens.

Source: Saxena 2023, "Prompt Lookup Decoding". When the last ``n`` tokens occurred before, what followed then is the
draft; n = 0 stands for the place where the last draft came from, as far on as the text has come since, which finds its
way back behind a name that was changed. Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding", say when that pays: a draft of k tokens, each right with probability a, brings

    E(a, k) = (1 + a + ... + a^k)

tokens in a pass of 1 + k rows a sequence, which takes stretch(1 + k) times as long as one row. The k with the largest
E / stretch is taken, and none unless it gains ``WORTH``. The rows are those that plain decoding would compute, bit for
bit, and each is sampled in turn, with the sequence's own random numbers, until one is not what was guessed: so a draft
changes when a token comes, never which.

a is measured for each n by itself, and costs nothing while nothing is drafted: what would have been guessed is compared
with what was sampled. It starts from ``DOUBT`` tokens that were wrong, so a draft has to be earned.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ollama_zmq.engine.pacing import Pacing
    from ollama_zmq.engine.sequence import Generation

LENGTHS = (3, 2, 0, 1)  # n, the best first
SIZES = (1, 2, 3, 5, 7, 11, 15)  # k
WORTH = 1.1
DOUBT = 1.5
MEMORY = 0.9  # weight of the token before


class Drafter(Protocol):
    """Something that guesses."""

    def draft(self, sequence: Generation, most: int, decoding: int) -> tuple[int, ...]:
        """At most *most* tokens that may follow, or none. *decoding* sequences share the stages."""


class Rate:
    """How often guesses were right lately."""

    def __init__(self) -> None:
        self._right = 0.0
        self._tried = DOUBT

    @property
    def value(self) -> float:
        """The share of right ones, from 0 to 1."""
        return self._right / self._tried

    def add(self, right: bool) -> None:
        """Count one guess."""
        self._right = MEMORY * self._right + right
        self._tried = MEMORY * self._tried + 1.0


class Lookup:
    """What one sequence has said, by its last tokens.

    Args:
        history: prompt and text; it grows at its end.

    Attributes:
        rates: for each n, how often the guess was right.
    """

    def __init__(self, history: Items[int]) -> None:
        self._history = history
        self.rates = {n: Rate() for n in LENGTHS}
        self._after: dict[tuple[int, ...], int] = {}  # n tokens -> where what follows them begins
        self._known = 0
        self._guess: list[int] = []
        self._n = 0
        self._from: int | None = None  # where the last guess came from

    def learn(self) -> None:
        """Take in what was said since the last time, and compare it with what had been guessed."""
        history = self._history
        for guessed, said in zip(self._guess, history[self._known :], strict=False):
            self.rates[self._n].add(guessed == said)
            if guessed != said:
                break
        for n in filter(None, LENGTHS):
            for i in range(max(self._known, n), len(history)):
                self._after[tuple(history[i - n : i])] = i
        if self._from is not None:
            self._from += len(history) - self._known
        self._known = len(history)
        self._guess = []

    def guess(self, most: int) -> tuple[list[int], float]:
        """*most* tokens that may follow, and how likely each is; none when nothing like the end was said before."""
        history = self._history
        for n in LENGTHS:
            at = self._after.get(tuple(history[-n:])) if n else self._from
            if at is not None and at < len(history):
                said = list(history[at : at + most])
                while len(said) < most:  # it goes on as it repeats itself
                    said += said[: most - len(said)]
                self._guess, self._n, self._from = said, n, at
                return said, self.rates[n].value
        return [], 0.0


class PromptLookup:
    """Drafts from what the prompt and the text itself have said before, where the cost model says that they pay."""

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing

    def draft(self, sequence: Generation, most: int, decoding: int) -> tuple[int, ...]:
        """At most *most* tokens, or none. *decoding* sequences share the stages."""
        if sequence.lookup is None:
            sequence.lookup = Lookup(sequence.history)
        sequence.lookup.learn()
        said, right = sequence.lookup.guess(SIZES[-1])
        return tuple(said[: self._worth(right, min(most, len(said)), decoding)])

    def _worth(self, right: float, most: int, decoding: int) -> int:
        """How many tokens to draft when each is right with probability *right*."""
        best, best_gain = 0, WORTH
        if right < 1.0 - 1.0 / WORTH:  # not even rows for nothing would pay
            return best
        for k in SIZES:
            gain = expected_tokens(right, k) / self._pacing.stretch(decoding, 1 + k) if k <= most else 0.0
            if gain > best_gain:
                best, best_gain = k, gain
        return best


def expected_tokens(right: float, k: int) -> float:
    """Tokens that a pass brings: those of the draft up to the first wrong one, and one more."""
    return sum(right**i for i in range(k + 1))

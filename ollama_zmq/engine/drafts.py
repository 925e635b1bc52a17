"""Guessing what a sequence will say next, so that one pass through the stages may bring several tokens.

Source: Saxena 2023, "Prompt Lookup Decoding". When the last ``n`` tokens occurred before, what followed then is the
draft. Of several places where the last three did, the one is taken before which most is the same, the latest of equals;
n = 0 stands for the place where the last draft came from, as far on as the text has come since, which finds its way
back behind a name that was changed. A token that was changed, and behind which the copy went on, is changed the same
way in later drafts, until it is not.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", say when that pays: a draft of k
tokens, each right with probability a, brings

    E(a, k) = (1 + a + ... + a^k)

tokens in a pass of 1 + k rows a sequence, which takes stretch(1 + k) times as long as one row. The k with the largest
E / stretch is taken, and none unless it gains ``WORTH``. The rows are those that plain decoding would compute, bit for
bit, and each is sampled in turn, with the sequence's own random numbers, until one is not what was guessed: so a draft
changes when a token comes, never which.

a is measured for each n by itself, and costs nothing while nothing is drafted: what would have been guessed is compared
with what was sampled. It starts from ``DOUBT`` tokens that were wrong, so a draft has to be earned.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ollama_zmq.engine.pacing import Pacing
    from ollama_zmq.engine.sequence import Generation

LONGEST = 3
LENGTHS = (LONGEST, 2, 0, 1)  # n, the best first
PLACES = 16  # where the last three tokens occurred, of which the best is looked for
COMPARED = 16  # tokens before such a place
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
        self._earlier: dict[int, int] = {}  # such a place -> the one before it, of the same three tokens
        self._known = 0
        self._guess: list[int] = []
        self._n = 0
        self._from: int | None = None  # where the last guess came from
        self._changes: dict[int, int] = {}  # token there -> the one that is said instead
        self._change: tuple[int, int] | None = None  # it may be one: what comes next will tell

    def learn(self) -> None:
        """Take in what was said since the last time, and compare it with what had been guessed."""
        history = self._history
        self._compare(history[self._known :])
        for n in filter(None, LENGTHS):
            for i in range(max(self._known, n), len(history)):
                tokens = tuple(history[i - n : i])
                if n == LONGEST and tokens in self._after:
                    self._earlier[i] = self._after[tokens]
                self._after[tokens] = i
        if self._from is not None:
            self._from += len(history) - self._known
        self._known = len(history)
        self._guess = []

    def guess(self, most: int) -> tuple[list[int], float]:
        """*most* tokens that may follow, and how likely each is; none when nothing like the end was said before."""
        history = self._history
        for n in LENGTHS:
            at = self._place(n)
            if at is not None and at < len(history):
                self._n, self._from = n, at
                self._guess = [self._changes.get(token_id, token_id) for token_id in self._source(most)]
                return self._guess, self.rates[n].value
        return [], 0.0

    def _place(self, n: int) -> int | None:
        """Where what followed the last *n* tokens begins."""
        if not n:
            return self._from
        at = self._after.get(tuple(self._history[-n:]))
        return max(self._places(at), key=self._same_before) if n == LONGEST and at is not None else at

    def _places(self, at: int) -> Iterator[int]:
        """*at* and places before it that the same three tokens lead to, the last first."""
        for _ in range(PLACES):
            yield at
            if at not in self._earlier:
                return
            at = self._earlier[at]

    def _same_before(self, at: int) -> int:
        """How many tokens before *at* are those at the end."""
        history = self._history
        most = min(COMPARED, at)
        return next((n for n in range(LONGEST, most) if history[at - 1 - n] != history[-1 - n]), most)

    def _source(self, most: int) -> list[int]:
        """*most* tokens as they were said at the place of the guess; it goes on as it repeats itself."""
        assert self._from is not None
        said = list(self._history[self._from : self._from + most])
        while len(said) < most:
            said += said[: most - len(said)]
        return said

    def _compare(self, said: Items[int]) -> None:
        """Count what was guessed right, up to the first that was wrong, and see whether that was a change."""
        wrong = None
        for i, (guessed, token_id) in enumerate(zip(self._guess, said, strict=False)):
            self.rates[self._n].add(guessed == token_id)
            if not i and self._change is not None and self._n == 0 and guessed == token_id:
                self._changes.update((self._change,))
            if guessed != token_id:
                wrong = i
                break
        self._change = None
        if wrong is not None:
            there = self._source(wrong + 1)[wrong]
            self._changes.pop(there, None)
            self._change = there, said[wrong]


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

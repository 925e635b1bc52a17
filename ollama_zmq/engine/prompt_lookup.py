"""Prompt lookup (n-gram drafts): what followed the same tokens earlier in one sequence is what may follow now.

Source: Saxena 2023, "Prompt Lookup Decoding". When the last ``n`` tokens occurred before, what followed then is the
draft. Of several places where the last three did, the one is taken before which most is the same, the latest of equals;
n = 0 stands for the place where the last draft came from, as far on as the text has come since, which finds its way
back behind a name that was changed. A token that was changed, and behind which the copy went on, is changed the same
way in later drafts, until it is not.

The acceptance rate is measured for each n by itself, and costs nothing while nothing is drafted: what would have been
drafted is compared with what was sampled. It starts from ``PRIOR_REJECTED`` tokens that were wrong, so a draft has to
be earned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

LONGEST = 3
LENGTHS = (LONGEST, 2, 0, 1)  # n, the best first
PLACES = 16  # where the last three tokens occurred, of which the best is looked for
COMPARED = 16  # tokens before such a place
PRIOR_REJECTED = 1.5
MEMORY = 0.9  # weight of the token before


class AcceptanceRate:
    """The share of drafted tokens that were right lately."""

    def __init__(self) -> None:
        self._accepted = 0.0
        self._tried = PRIOR_REJECTED

    @property
    def value(self) -> float:
        """The rate, from 0 to 1."""
        return self._accepted / self._tried

    def add(self, accepted: bool) -> None:
        """Count one token of a draft."""
        self._accepted = MEMORY * self._accepted + accepted
        self._tried = MEMORY * self._tried + 1.0


class PromptLookup:
    """What followed in one sequence, by the tokens before it.

    Args:
        history: prompt and text; it grows at its end.

    Attributes:
        rates: for each n, the acceptance rate of its guesses.
    """

    def __init__(self, history: Sequence[int]) -> None:
        self._history = history
        self.rates = {n: AcceptanceRate() for n in LENGTHS}
        self._after: dict[tuple[int, ...], int] = {}  # n tokens -> where what follows them begins
        self._earlier: dict[int, int] = {}  # such a place -> the one before it, of the same three tokens
        self._known = 0
        self._guess: list[int] = []
        self._n = 0
        self._from: int | None = None  # where the last guess came from
        self._changes: dict[int, int] = {}  # token there -> the one that stands there instead
        self._change: tuple[int, int] | None = None  # it may be one: what comes next decides

    def learn(self) -> None:
        """Take in what was sampled since the last time, and compare it with what had been guessed."""
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
        """*most* tokens that may follow, and how likely each is; none when nothing like the end occurred before."""
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
        """*most* tokens as they stand at the place of the guess; it goes on as it repeats itself."""
        assert self._from is not None
        proposal = list(self._history[self._from : self._from + most])
        while len(proposal) < most:
            proposal += proposal[: most - len(proposal)]
        return proposal

    def _compare(self, sampled: Sequence[int]) -> None:
        """Count what was guessed right, up to the first that was wrong, and see whether that was a change."""
        wrong = None
        for i, (guessed, token_id) in enumerate(zip(self._guess, sampled, strict=False)):
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
            self._change = there, sampled[wrong]

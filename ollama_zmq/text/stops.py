"""Stop strings, found across the borders of tokens.

Text that might be the beginning of a stop string is held back until it is known whether it is one, so a client never
sees part of a stop string, and sees everything else as early as possible.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Watches one sequence's text for *stops*.

    Attributes:
        matched: the stop string that was found; None while there is none. Of several, the one that was complete
            first, and of those that end together the longest: however the text was cut into tokens.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = {stop for stop in stops if stop}
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """The text that is safe to show after *text* has come in: none after a stop string."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            _, end, self.matched = min(found)
        else:
            end = self._first_possible()
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def finish(self) -> str:
        """What was held back, now that nothing follows; none after a stop string."""
        held, self._held = self._held, ""
        return "" if self.matched is not None else held

    def _first_possible(self) -> int:
        """Where the earliest stop string that the end of the held text might begin would begin."""
        held = self._held
        for at in range(max(0, len(held) - self._longest + 1), len(held)):
            tail = held[at:]
            if any(stop.startswith(tail) for stop in self._stops):
                return at
        return len(held)

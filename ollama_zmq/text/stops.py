"""Stop strings, found across the borders of tokens.

Text that might be the beginning of a stop string is held back until it is known whether it is one, so a client never
sees part of a stop string, and sees everything else as early as possible. The names of control tokens count as text
here, though nobody is shown them: Modelfiles of Ollama's library stop at ``<|im_start|>``, for models that run on.
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
        self._hidden = bytearray()  # for each character held, whether it is not to be shown
        self.matched: str | None = None

    def push(self, text: str, *, hidden: bool = False) -> str:
        """The text that is safe to show after *text* has come in: none after a stop string, nothing *hidden*."""
        if self.matched is not None:
            return ""
        self._held += text
        self._hidden += bytes([hidden]) * len(text)
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            _, end, self.matched = min(found)
        else:
            end = self._first_possible()
        return self._take(end)

    def finish(self) -> str:
        """What was held back, now that nothing follows; none after a stop string."""
        held = self._take(len(self._held))
        return "" if self.matched is not None else held

    def _take(self, end: int) -> str:
        """Let go of what is held up to *end*, and return what may be seen of it."""
        text, hidden = self._held[:end], self._hidden[:end]
        self._held, self._hidden = self._held[end:], self._hidden[end:]
        return "".join(c for c, unseen in zip(text, hidden, strict=True) if not unseen) if any(hidden) else text

    def _first_possible(self) -> int:
        """Where the earliest stop string that the end of the held text might begin would begin."""
        held = self._held
        for at in range(max(0, len(held) - self._longest + 1), len(held)):
            tail = held[at:]
            if any(stop.startswith(tail) for stop in self._stops):
                return at
        return len(held)

"""How long a thread worked: the time that passed, less what it waited and what it did for others."""

from __future__ import annotations

from time import monotonic


class Stopwatch:
    """Runs from the start; :meth:`stop` and :meth:`start` leave out what lies between them."""

    def __init__(self) -> None:
        self._before_s = 0.0
        self._since = monotonic()

    def stop(self) -> None:
        """What follows does not count."""
        self._before_s += monotonic() - self._since

    def start(self) -> None:
        """What follows counts."""
        self._since = monotonic()

    def lap(self) -> float:
        """Return the seconds that counted since the last call. Only while it runs."""
        self.stop()
        lap_s, self._before_s = self._before_s, 0.0
        self.start()
        return lap_s

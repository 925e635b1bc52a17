"""Waking a thread that polls sockets, from any other thread or from a signal handler."""

from __future__ import annotations

import contextlib
import os


class Wakeup:
    """A pipe to put into a poller: readable after :meth:`wake` until :meth:`clear`.

    Whoever wakes sets a flag first; the pipe says only that there is something to look at.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._reader

    def wake(self) -> None:
        """Make the poller return. May be called from anywhere, also after :meth:`close`."""
        with contextlib.suppress(OSError):  # full: it is awake already; closed: nobody sleeps
            if self._writer >= 0:
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Forget every :meth:`wake` so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass

    def close(self) -> None:
        """Close the pipe; a second time does nothing."""
        reader, writer, self._reader, self._writer = self._reader, self._writer, -1, -1
        if reader >= 0:
            os.close(writer)
            os.close(reader)

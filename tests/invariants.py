"""What decides keeps its invariants: every pool, engine, coordinator and pipeline that a test made is checked after it.

They are noted when they are made. One that was made by a thread that still runs, such as that of a broker which several
tests share, is checked after the test in which that has ended.
"""

from __future__ import annotations

import functools
import threading

from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.cluster.pipeline import Pipeline
from ollama_zmq.engine.engine import Engine
from ollama_zmq.engine.pages import PagePool
from ollama_zmq.engine.scheduler import Scheduler

CHECKED = (PagePool, Scheduler, Engine, Coordinator, Pipeline)

made = []  # (who, in which thread)


def watch():
    """From here on, note whatever of ``CHECKED`` is made."""
    for kind in CHECKED:
        if hasattr(kind, "check"):
            kind.__init__ = _noting(kind.__init__)


def check():
    """Check what was made, and forget it.

    Raises:
        AssertionError: an invariant does not hold.
    """
    here = threading.current_thread()
    settled = [who for who, thread in made if thread is here or not thread.is_alive()]
    made[:] = [(who, thread) for who, thread in made if thread is not here and thread.is_alive()]
    for who in settled:
        who.check()


def _noting(init):
    @functools.wraps(init)
    def noted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append((self, threading.current_thread()))

    return noted

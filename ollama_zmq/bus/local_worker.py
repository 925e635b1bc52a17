"""The broker's own device as a worker in the same process: envelopes are handed over as they are, without frames.

A thread of its own loads weights and runs steps, so that the broker goes on meanwhile. A short step beside which
nothing else is in flight leaves the broker nothing to go on with, and is served in the broker's thread: that saves two
changes of thread, each with a handover of the GIL.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from time import monotonic

from ollama_zmq.bus.service import Service
from ollama_zmq.bus.weights import FindBlob
from ollama_zmq.cluster.worker_events import Received
from ollama_zmq.devices.base import Device
from ollama_zmq.wire.frames import Envelope


class LocalWorker(Service):
    """A worker that is never silent and cannot be lost.

    Attributes:
        on_reply: called in this worker's thread with each reply to what was :meth:`post`\\ ed.
    """

    def __init__(self, device: Device, *, name: str, find_blob: FindBlob) -> None:
        super().__init__(device, name=name, find_blob=find_blob, silence_limit_s=float("inf"))
        self.on_reply: Callable[[Envelope], None] = lambda envelope: None
        self._inbox: queue.SimpleQueue[Envelope | None] = queue.SimpleQueue()
        self._posted = self._served = 0
        self._replied = self._acknowledged = 0
        self._working = threading.Lock()
        self._replies: list[Envelope] = []

    def post(self, envelope: Envelope) -> None:
        """Serve *envelope* in this worker's thread. Only the broker's thread calls this and :meth:`serve_here`."""
        self._posted += 1
        self._inbox.put(envelope)

    def acknowledge(self) -> None:
        """Note that the broker's thread has taken one reply."""
        self._acknowledged += 1

    def serve_here(self, envelope: Envelope) -> list[Envelope] | None:
        """Serve *envelope* at once and return the replies.

        None, with nothing done, while the own thread is at work, or one of its replies has not been taken: this one's
        would overtake it.

        Their tensors are views of the device's memory, valid until the next message.
        """
        if not self._working.acquire(blocking=False):
            return None
        try:
            if self._posted != self._served or self._replied != self._acknowledged or self.runner.busy:
                return None
            return self._serve(envelope)
        finally:
            self._working.release()

    def run(self) -> None:
        """Serve what is posted until :meth:`stop`."""
        while (envelope := self._inbox.get()) is not None:
            with self._working:
                self._reply(self._serve(envelope))
                self._served += 1
            while self.runner.busy and self._inbox.empty():
                with self._working:
                    self.load_next()
                    self._reply(self._taken_replies())
        self.runner.release_all()

    def stop(self) -> None:
        """Make :meth:`run` return once everything posted is served. May be called from any thread."""
        self._inbox.put(None)

    def send(self, envelope: Envelope) -> None:
        self._replies.append(envelope)

    def _serve(self, envelope: Envelope) -> list[Envelope]:
        self.apply(Received(monotonic(), envelope))
        return self._taken_replies()

    def _taken_replies(self) -> list[Envelope]:
        replies, self._replies = self._replies, []
        return replies

    def _reply(self, replies: list[Envelope]) -> None:
        """Hand *replies* to the broker's thread, which may read them when the device runs again."""
        for reply in replies:
            tensors = {name: array.copy() for name, array in reply.tensors.items()}
            self._replied += 1
            self.on_reply(Envelope(reply.message, tensors, reply.epoch, reply.seq))

"""A worker at work: what its state machine decides is carried out on its device.

How messages come and go is left to whoever inherits: :class:`~ollama_zmq.bus.worker_loop.WorkerLoop` has a socket,
:class:`~ollama_zmq.bus.local_worker.LocalWorker` hands envelopes over within one process. One thread at a time uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic

import structlog

from ollama_zmq.bus.runner import Reply, Runner
from ollama_zmq.bus.weights import FindBlob
from ollama_zmq.bus.welcome import WelcomeBuilder
from ollama_zmq.cluster.worker import State, Worker
from ollama_zmq.cluster.worker_events import (
    NO_MICROBATCH,
    Answered,
    Compute,
    DropPeer,
    Event,
    ReleaseAll,
    SendReply,
    SendWelcome,
    StoreChunk,
    Unload,
    Verify,
    WorkFailed,
)
from ollama_zmq.devices.base import Device
from ollama_zmq.errors import OllamaZmqError, OpError
from ollama_zmq.wire.frames import Envelope

Work = Callable[[], list[Reply]]

log = structlog.get_logger()


class Service:
    """Feeds one :class:`Worker` and carries out its effects.

    Args:
        name: "host:port" of this worker, for messages to people.
        find_blob: finds a blob in this machine's own store.
        silence_limit_s: how long the broker may say nothing.

    Attributes:
        budget: of the device's memory.
        peer: the machine of the broker.
    """

    def __init__(self, device: Device, *, name: str, find_blob: FindBlob, silence_limit_s: float) -> None:
        self.peer = "this process"
        self.worker = Worker(name, silence_limit_s=silence_limit_s)
        self.runner = Runner(device, find_blob)
        self.budget = device.budget
        self._welcome = WelcomeBuilder(device)

    def send(self, envelope: Envelope) -> None:
        """Send to the broker. Tensors may be views of the device's memory, valid until its next run."""
        raise NotImplementedError

    def drop_peer(self) -> None:
        """Close the connection of a silent broker."""

    def on_lease(self, held: bool) -> None:
        """Take note that a broker holds the lease, or that none does any more."""
        if held:
            log.info("broker.leased", broker=self.worker.broker, address=self.peer)

    def compute(self, effect: Compute) -> list[Reply]:
        """Run a step."""
        queued_us = int((monotonic() - effect.arrived) * 1e6)
        return self.runner.run(effect.run, effect.input, queued_us)

    def load_next(self) -> None:
        """Load a part of a weight of a program that waits for it."""
        self._carry_out(self.runner.load_next, self.runner.next_program)

    def apply(self, event: Event) -> None:
        """Give one event to the worker and carry out what follows."""
        before = self.worker.state
        effects = self.worker.handle(event)
        if self.worker.state is not before:
            self.on_lease(self.worker.state is State.LEASED)
        for effect in effects:
            match effect:
                case SendReply(envelope):
                    self.send(envelope)
                case Compute(run=run):
                    self._carry_out(partial(self.compute, effect), run.program, run.microbatch)
                case SendWelcome():
                    self._carry_out(self._send_welcome)
                case Verify(define):
                    self._carry_out(partial(self.runner.define, define), define.program)
                case StoreChunk(put, chunk):
                    self._carry_out(partial(self.runner.put, put, chunk), put.program)
                case Unload(program):
                    self.runner.release(program)
                case ReleaseAll(broker, reason):
                    log.info("broker.lost", broker=broker, reason=reason)
                    self.runner.release_all()
                case DropPeer():
                    self.drop_peer()

    def _carry_out(self, work: Work, program: bytes = b"", microbatch: int = NO_MICROBATCH) -> None:
        """Do *work* and hand its replies, or what went wrong, to the worker."""
        try:
            replies = work()
        except OllamaZmqError as error:
            self.apply(WorkFailed(monotonic(), error, program, microbatch))
        except Exception as error:
            log.exception("work.failed", program=program.hex(), microbatch=microbatch)
            internal = OpError(f"internal error ({type(error).__name__})")
            self.apply(WorkFailed(monotonic(), internal, program, microbatch))
        else:
            for reply in replies:
                self.apply(Answered(monotonic(), reply.message, reply.tensors))

    def _send_welcome(self) -> list[Reply]:
        return [Reply(self._welcome.build())]

"""The broker's own device: served in its own thread or in the caller's, with the same answers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from ollama_zmq.bus.local_worker import LocalWorker
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import AnyMessage, Defined, Hello, Ran, Ready, Stored, Welcome
from tests.bus.peer import DEADLINE_S, chunks_of, define_of, linear_program, random_weight, run_of
from tests.bus.test_worker_loop import GatedDevice

PROGRAM = linear_program()
X = np.ones((1, 4), np.float32)


class OneBuffer:
    """An executable whose results stand in the same memory each time, as those of the CPU device do."""

    def __init__(self, executable) -> None:
        self._executable = executable
        self._memory = np.zeros(64, np.float32)

    def __getattr__(self, name):
        return getattr(self._executable, name)

    def run(self, value, step):
        result = self._executable.run(value, step)
        view = self._memory[: result.size].reshape(result.shape)
        view[:] = result
        return view


class ReusingDevice(GatedDevice):
    def compile(self, *args, **kwargs):
        return OneBuffer(super().compile(*args, **kwargs))


class Local:
    """A local worker in its thread, and its broker's side."""

    def __init__(self) -> None:
        self.device = ReusingDevice()
        self.worker = LocalWorker(self.device, name="local", find_blob=lambda blob: None)
        self.replies: queue.Queue[Envelope] = queue.Queue()
        self.worker.on_reply = self.replies.put
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        self._sent = 0

    def envelope(self, message: AnyMessage, **tensors: np.ndarray) -> Envelope:
        self._sent += 1
        return Envelope(message, tensors, 1, self._sent - 1)

    def post(self, message: AnyMessage, **tensors: np.ndarray) -> None:
        self.worker.post(self.envelope(message, **tensors))

    def reply(self) -> Envelope:
        reply = self.replies.get(timeout=DEADLINE_S)
        self.worker.acknowledge()
        return reply

    def serve_here(self, envelope: Envelope) -> Envelope:
        """What the caller's thread answers, as soon as the other has put down its work."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if (replies := self.worker.serve_here(envelope)) is not None:
                (reply,) = replies
                return reply
        raise AssertionError("the worker's thread is still at work")


@pytest.fixture
def local() -> Iterator[Local]:
    made = Local()
    made.post(Hello(VERSION, PROTOCOL, "b"))
    assert isinstance(made.reply().message, Welcome)
    made.post(define_of(PROGRAM))
    assert made.reply().message == Defined(PROGRAM.id, ("w",))
    for put, chunk in chunks_of(PROGRAM, random_weight()):
        made.post(put, chunk=chunk)
        assert isinstance(made.reply().message, Stored)
    assert isinstance(made.reply().message, Ready)
    yield made
    made.device.gate.release(1 << 20)
    made.worker.stop()
    made.thread.join(DEADLINE_S)
    assert not made.thread.is_alive()
    assert made.device.budget.used == 0


def test_nothing_overtakes_a_reply_that_has_not_been_taken(local):
    local.post(run_of(PROGRAM, 1), input=X)
    there = local.replies.get(timeout=DEADLINE_S)
    after = local.envelope(run_of(PROGRAM, 1, microbatch=2), input=X)
    assert local.worker.serve_here(after) is None
    local.worker.acknowledge()
    assert local.serve_here(after).seq == there.seq + 1


def test_a_step_has_the_same_bits_in_either_thread(local):
    local.post(run_of(PROGRAM, 1), input=X)
    there = local.reply()
    here = local.serve_here(local.envelope(run_of(PROGRAM, 1, microbatch=2), input=X))
    assert isinstance(there.message, Ran)
    assert (here.seq, here.message.microbatch) == (there.seq + 1, 2)
    assert here.tensors["output"].tobytes() == there.tensors["output"].tobytes()


def test_nothing_overtakes_what_was_posted(local):
    local.device.shut()
    local.post(define_of(linear_program(name="other", weight="v")))
    assert isinstance(local.reply().message, Defined)
    for put, chunk in chunks_of(linear_program(name="other", weight="v"), random_weight(), name="v"):
        local.post(put, chunk=chunk)
    assert local.worker.serve_here(local.envelope(run_of(PROGRAM, 1), input=X)) is None
    assert local.device.entered.acquire(timeout=DEADLINE_S)
    assert local.worker.serve_here(local.envelope(run_of(PROGRAM, 1), input=X)) is None


def test_what_was_answered_stays_when_the_device_runs_again(local):
    local.post(run_of(PROGRAM, 1), input=X)
    local.post(run_of(PROGRAM, 1, microbatch=2), input=2 * X)
    first, second = local.reply(), local.reply()
    assert first.tensors["output"].any()
    np.testing.assert_array_equal(2 * first.tensors["output"], second.tensors["output"])

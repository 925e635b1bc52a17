"""The broker's loop: the order in which effects are carried out, and what becomes of those that nobody needs any more.

No socket is open here: what would be sent or dialled is noted.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

from ollama_zmq.bus.coordinator_loop import CoordinatorLoop
from ollama_zmq.bus.local_worker import LocalWorker
from ollama_zmq.bus.served import ServedModels
from ollama_zmq.cluster.events import (
    Connect,
    ConnectionFailed,
    ConnectionLost,
    Disconnect,
    Event,
    Send,
    SendChunk,
    StartedOver,
    Unsendable,
)
from ollama_zmq.cluster.link import Status
from ollama_zmq.errors import LocalProtocolError
from ollama_zmq.wire import frames
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import CHUNK_BYTES, AnyMessage, Bye, Ping, Put, Run, WeightSource

A, B = "a:50052", "b:50052"
PROGRAM = b"p" * 16
WEIGHT = WeightSource("w", "", 0, 2 * CHUNK_BYTES)
ENDPOINTS = SimpleNamespace(endpoints=("tcp://192.0.2.1:50052",), why="")


@dataclass
class Noted:
    """In the place of the dialer: what was asked of it; sending to *full* fails."""

    full: set[str] = field(default_factory=set)
    done: list[tuple[str, str, int]] = field(default_factory=list)
    sent: list[Envelope] = field(default_factory=list)
    happened: list[Event] = field(default_factory=list)

    def dial(self, address: str, endpoints: Sequence[str], epoch: int, now: float) -> None:
        self.done.append(("dial", address, epoch))

    def hang_up(self, address: str) -> list:
        self.done.append(("hang up", address, 0))
        return []

    def advance(self, now: float) -> tuple[list[Event], list[list[zmq.Frame]]]:
        return self.happened, []

    def consumed(self, address: str, parts: list) -> None:
        pass

    def send(self, address: str, epoch: int, parts: list) -> None:
        if address in self.full:
            raise zmq.ZMQError(errno.EAGAIN)
        self.done.append(("send", address, epoch))
        self.sent.append(frames.decode(parts))


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def told() -> list:
    """What the loop told of loads."""
    return []


@pytest.fixture
def loop(context, device, noted, told):
    local = LocalWorker(device, name="local", find_blob=lambda blob: None)
    made = CoordinatorLoop(context, "a" * 16, local, ServedModels(), told.append)
    made._dialer = noted
    made.resolved = {A: ENDPOINTS, B: ENDPOINTS}
    yield made
    made._wakeup.close()


def says(loop: CoordinatorLoop, address: str, message: AnyMessage, **tensors: np.ndarray) -> Send:
    return loop.coordinator.links[address].send(message, tensors)


def ping(loop: CoordinatorLoop, address: str) -> Send:
    return says(loop, address, Ping(0), payload=np.zeros(0, np.uint8))


def join(loop: CoordinatorLoop, *addresses: str) -> list[int]:
    """Connect to *addresses* on paper; return the epochs."""
    loop.coordinator.links.join(addresses, 0.0)
    return [loop.coordinator.links[address].epoch for address in addresses]


def chunk(epoch: int, offset: int) -> SendChunk:
    return SendChunk(A, epoch, 1, PROGRAM, WEIGHT, offset, CHUNK_BYTES)


def serve_model(loop: CoordinatorLoop) -> None:
    """Model 1, of whose file nothing but bytes is there."""
    gguf = SimpleNamespace(data=lambda name: memoryview(bytes(WEIGHT.nbytes)))
    loop._models._models[1] = SimpleNamespace(gguf=gguf, engine=None)


def test_what_comes_of_an_effect_is_carried_out_behind_those_before_it(loop, noted, monkeypatch):
    join(loop, A, B)
    noted.full = {A}
    consequences = [Disconnect(A), Connect(A, 7)]
    monkeypatch.setattr(loop.coordinator, "handle", lambda event, now: consequences)
    loop.apply([ping(loop, A), ping(loop, B), Connect(B, 5)])
    assert [what[:2] for what in noted.done] == [("send", B), ("dial", B), ("hang up", A), ("dial", A)]


def test_chunks_behind_one_that_failed_do_not_go_to_the_next_connection(loop, noted, monkeypatch):
    """They would be numbered there, before its Hello, and cost it as well."""
    (epoch,) = join(loop, A)
    serve_model(loop)
    noted.full = {A}
    handle = loop.coordinator.handle

    def join_again(event, now):
        noted.full = set()
        return handle(event, now) + loop.coordinator.links.join((A,), now)

    monkeypatch.setattr(loop.coordinator, "handle", join_again)
    loop.apply([chunk(epoch, 0), chunk(epoch, CHUNK_BYTES)])
    link = loop.coordinator.links[A]
    assert (link.status, link.epoch > epoch, link.sequence_out) == (Status.CONNECTING, True, 0)
    assert noted.sent == []


def test_chunks_of_a_model_that_is_gone_are_dropped(loop, noted):
    (epoch,) = join(loop, A)
    loop.apply([chunk(epoch, 0)])
    assert (noted.sent, loop.coordinator.links[A].sequence_out) == ([], 0)


def test_a_digest_that_was_begun_goes_with_the_connection(loop, noted):
    (epoch,) = join(loop, A)
    serve_model(loop)
    loop.apply([chunk(epoch, 0)])
    (sent,) = noted.sent
    assert isinstance(sent.message, Put)
    assert loop._chunks._digests
    loop.apply([Disconnect(A)])
    assert not loop._chunks._digests


def test_a_message_that_no_frame_can_carry_ends_what_it_was_about_and_no_number_is_missing(loop, noted, monkeypatch):
    happened = []
    (epoch,) = join(loop, A)
    monkeypatch.setattr(loop.coordinator, "handle", lambda event, now: happened.append(event) or [])
    pages = (tuple(range(70_000, 80_000)),) * 64
    step = Run(PROGRAM, 3, (1,) * 64, (0,) * 64, pages, ())
    loop.apply([says(loop, A, step, input=np.zeros(64, np.int32)), ping(loop, A)])
    assert [(sent.epoch, sent.seq) for sent in noted.sent] == [(epoch, 0), (epoch, 1)]
    (event,) = happened
    assert isinstance(event, Unsendable)
    assert (event.address, event.epoch, event.program, event.microbatch) == (A, epoch, PROGRAM, 3)
    assert isinstance(event.error, LocalProtocolError)
    assert "run: header of" in str(event.error)


def test_a_failed_send_is_of_the_connection_that_it_was_for(loop, noted, monkeypatch):
    (epoch,) = join(loop, A)
    noted.full = {A}
    happened = []
    monkeypatch.setattr(loop.coordinator, "handle", lambda event, now: happened.append(event) or [])
    loop.apply([ping(loop, A)])
    (failed,) = happened
    assert isinstance(failed, ConnectionFailed)
    assert (failed.address, failed.epoch) == (A, epoch)


def test_after_a_fault_of_its_own_connections_are_what_the_coordinator_says(loop, noted, told, monkeypatch):
    """What was in line for models is dropped; who waits for workers is told."""
    join(loop, A)

    def fails(event, now):
        raise ZeroDivisionError

    monkeypatch.setattr(loop.coordinator, "handle", fails)
    noted.full = {A}
    with pytest.raises(ZeroDivisionError):
        loop.apply([ping(loop, A), Disconnect(B), Connect(B, 2)])
    loop._start_over()
    assert noted.done == [("hang up", B, 0), ("dial", B, 2)]
    assert [type(effect) for effect in told] == [StartedOver]


def test_a_bye_that_came_before_the_end_of_a_connection_is_why_it_ended(loop, noted, monkeypatch):
    (epoch,) = join(loop, A)
    link = loop.coordinator.links[A]
    link.attached(0.0)
    link.start_handshake(0.0)
    bye = [f"{A}#{epoch}.1".encode(), *frames.encode(Envelope(Bye(), epoch=epoch, seq=0))]
    monkeypatch.setattr(loop, "_router", None, raising=False)
    monkeypatch.setattr("ollama_zmq.bus.sockets.read_all", lambda router: [[zmq.Frame(part) for part in bye]])
    noted.happened = [ConnectionLost(A, epoch, f"worker {A} is gone: the connection broke")]
    loop._watch_connections(0.0)
    assert (link.status, link.detail) == (Status.LOST, f"worker {A} was stopped")

"""A worker with real sockets: one conversation, and the peers that do not behave."""

from __future__ import annotations

import contextlib
import socket
import threading

import msgspec
import numpy as np
import pytest

from ollama_zmq.bus import admission, sockets, worker_loop
from ollama_zmq.bus.monitor import Connected, Disconnected, HandshakeFailed
from ollama_zmq.bus.worker_loop import WorkerLoop
from ollama_zmq.devices.base import Budget
from ollama_zmq.devices.reference import ReferenceDevice
from ollama_zmq.errors import RequestError
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import INLINE_NBYTES, START, Envelope, encode
from ollama_zmq.wire.messages import (
    Bye,
    Defined,
    Failed,
    Hello,
    Ping,
    Pong,
    Ran,
    Ready,
    Refused,
    Release,
    Stored,
    Welcome,
)
from tests.bus.peer import DEADLINE_S, chunks_of, define_of, linear_program, random_weight, run_of

PROGRAM = linear_program()
WEIGHT = random_weight()
X = np.ones((1, 4), np.float32)
BLOB = "sha256-" + "ab" * 32


class GatedDevice(ReferenceDevice):
    """Waits, when told to, before it loads a weight or computes: for tests about a busy worker."""

    def __init__(self):
        super().__init__(Budget(64 << 20))
        self.name = f"gated {id(self)}"  # none was measured before
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(1 << 20)

    def shut(self):
        self.gate = threading.Semaphore(0)

    def load_weight(self, spec, data):
        self._pass_gate()
        return super().load_weight(spec, data)

    def measure(self):
        self._pass_gate()
        return super().measure()

    def _pass_gate(self):
        self.entered.release()
        assert self.gate.acquire(timeout=DEADLINE_S)


def make_ready(peer, program=PROGRAM, weight=WEIGHT):
    assert peer.ask(define_of(program)) == Defined(program.id, ("w",))
    for put, chunk in chunks_of(program, weight):
        assert isinstance(peer.ask(put, chunk=chunk), Stored)
    assert isinstance(peer.receive().message, Ready)


def test_a_conversation_from_hello_to_bye(serve, connect, device):
    peer = connect(serve(device))
    welcome = peer.greet()
    assert isinstance(welcome, Welcome)
    assert (welcome.package, welcome.protocol) == (VERSION, PROTOCOL)
    assert (welcome.memory_budget, welcome.threads) == (device.budget.limit, device.threads)
    assert peer.ask(Ping(7), payload=np.arange(9, dtype=np.uint8)) == Pong(7)
    make_ready(peer)
    peer.send(run_of(PROGRAM, 2), input=np.ones((2, 4), np.float32))
    result = peer.receive()
    assert isinstance(result.message, Ran)
    np.testing.assert_allclose(result.tensors["output"], np.tile(WEIGHT.sum(axis=1), (2, 1)), rtol=1e-5)
    peer.send(Release(PROGRAM.id))
    failed = peer.ask(run_of(PROGRAM, 1, microbatch=2), input=X)
    assert failed == Failed(PROGRAM.id, 2, "RemoteProtocolError", f"program {PROGRAM.id.hex()} is not ready")
    peer.send(Bye())
    assert peer.ask(Ping(8), payload=np.zeros(0, np.uint8)).kind == "StageLost"
    assert device.budget.used == 0


def test_rubbish_is_answered_and_the_conversation_goes_on(serve, connect, device):
    peer = connect(serve(device))
    peer.greet()
    make_ready(peer)
    for parts in ([b"junk"], [START + b"\1\0\0\0\xc1"], [START, b"\x80", b""], [b""] * 40, [b"OZ\x09\1\0\0\0\x80"]):
        peer.send_raw(parts)
        assert peer.receive().message.kind == "RemoteProtocolError"
    peer.send(run_of(PROGRAM, 1), input=X)
    assert isinstance(peer.receive().message, Ran)


def test_a_wrong_step_fails_alone(serve, connect, device):
    peer = connect(serve(device))
    peer.greet()
    make_ready(peer)
    failed = peer.ask(run_of(PROGRAM, 1), input=np.ones((3, 4), np.float32))
    assert (failed.kind, failed.microbatch) == ("ShapeError", 1)
    assert isinstance(peer.ask(run_of(PROGRAM, 1, microbatch=2), input=X), Ran)


def test_an_error_nobody_foresaw_is_answered_and_survived(serve, connect, device, monkeypatch):
    peer = connect(serve(device))
    peer.greet()
    monkeypatch.setattr(device, "check", lambda verified: 1 / 0)
    failed = peer.ask(define_of(PROGRAM))
    assert failed == Failed(PROGRAM.id, -1, "OpError", "internal error (ZeroDivisionError)")
    assert peer.ask(Ping(1), payload=np.zeros(0, np.uint8)) == Pong(1)


def test_another_version_is_refused_and_the_worker_stays_free(serve, connect, device):
    peer = connect(serve(device))
    refused = peer.ask(Hello("9.9.9", PROTOCOL + 1, peer.broker))
    assert isinstance(refused, Refused)
    assert f"worker box:50052 runs ollama-zmq {VERSION} (protocol {PROTOCOL}), this broker 9.9.9" in refused.reason
    peer.seq = 0
    assert isinstance(peer.greet(), Welcome)


def test_a_newer_epoch_begins_with_nothing(serve, connect, device):
    peer = connect(serve(device))
    peer.greet()
    make_ready(peer)
    peer.reconnect()
    peer.greet()
    assert device.budget.used == 0
    assert peer.ask(define_of(PROGRAM)) == Defined(PROGRAM.id, ("w",))


def test_messages_of_an_older_epoch_do_nothing(serve, connect, device):
    peer = connect(serve(device), epoch=5)
    peer.greet()
    make_ready(peer)
    peer.send_raw(encode(Envelope(run_of(PROGRAM, 1, microbatch=40), {"input": X}, epoch=4, seq=peer.seq)))
    peer.send(run_of(PROGRAM, 1, microbatch=41), input=X)
    assert peer.receive().message.microbatch == 41


def test_a_web_browser_at_the_port_is_sent_away(serve, connect, device):
    loop = serve(device)
    host, port = loop.bound_endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n" + bytes(100))
        with contextlib.suppress(ConnectionResetError):
            while browser.recv(4096):
                pass
    assert isinstance(connect(loop).greet(), Welcome)


def test_a_second_broker_is_refused_at_the_handshake(serve, connect, device):
    loop = serve(device)
    first = connect(loop)
    first.greet()
    second = connect(loop, broker="b" * 16)
    assert second.wait_for(HandshakeFailed) == HandshakeFailed(loop.bound_endpoint, "auth", 400)
    make_ready(first)
    for i in range(10):  # every reply comes to the first
        assert first.ask(run_of(PROGRAM, 1, microbatch=10 + i), input=X).microbatch == 10 + i


def test_a_second_broker_is_refused_while_the_worker_is_busy(serve, connect):
    device = GatedDevice()
    device.shut()
    loop = serve(device)
    first = connect(loop)
    first.send(Hello(VERSION, PROTOCOL, first.broker))
    assert device.entered.acquire(timeout=DEADLINE_S)
    second = connect(loop, broker="b" * 16)
    assert second.wait_for(HandshakeFailed) == HandshakeFailed(loop.bound_endpoint, "auth", 400)
    device.gate.release(100)
    assert isinstance(first.receive().message, Welcome)


def test_a_broker_that_vanishes_frees_the_lease_and_its_memory(serve, connect, device):
    loop = serve(device)
    first = connect(loop)
    first.greet()
    make_ready(first)
    second = connect(loop, broker="b" * 16)
    second.wait_for(HandshakeFailed)
    first.close()
    second.reconnect()
    second.wait_for(Connected)
    assert isinstance(second.greet(), Welcome)
    assert device.budget.used == 0


def test_answers_to_a_broker_that_vanished_reach_nobody_else(serve, connect):
    device = GatedDevice()
    device.shut()
    loop = serve(device)
    first = connect(loop)
    first.send(Hello(VERSION, PROTOCOL, first.broker))
    assert device.entered.acquire(timeout=DEADLINE_S)
    first.send(define_of(PROGRAM))  # still in the queue when its sender is gone
    first.close()
    second = connect(loop, broker="b" * 16)
    second.send(Hello(VERSION, PROTOCOL, second.broker))
    second.send(Ping(1), payload=np.zeros(0, np.uint8))
    device.gate.release(100)
    assert [type(second.receive().message) for _ in range(2)] == [Welcome, Pong]


def test_a_peer_that_says_nothing_is_dropped(serve, connect, device, monkeypatch):
    monkeypatch.setattr(admission, "HANDSHAKE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(worker_loop, "MAX_IDLE_S", 0.02)
    loop = serve(device)
    silent = connect(loop)
    silent.wait_for(Connected)
    assert silent.wait_for(Disconnected).endpoint == loop.bound_endpoint
    silent.close()
    monkeypatch.setattr(admission, "HANDSHAKE_TIMEOUT_S", DEADLINE_S)
    speaking = connect(loop, broker="b" * 16)
    speaking.wait_for(Connected)
    assert isinstance(speaking.greet(), Welcome)


def test_silent_peers_keep_no_broker_out(serve, connect, device):
    loop = serve(device)
    silent = [connect(loop, broker=f"{i}" * 16) for i in range(3)]
    for each in silent:
        each.wait_for(Connected)
    speaking = connect(loop)
    for _ in range(2):
        assert isinstance(speaking.greet(), Welcome)
    for i in range(10):  # and every answer is for the one that is served
        assert speaking.ask(Ping(i), payload=np.zeros(0, np.uint8)) == Pong(i)
    for each in silent:
        each.wait_for(Disconnected)


def test_a_broker_that_falls_silent_is_dropped(serve, connect, device, monkeypatch):
    monkeypatch.setattr(worker_loop, "SILENCE_LIMIT_S", 0.2)
    loop = serve(device)
    peer = connect(loop)
    peer.greet()
    peer.wait_for(Disconnected)
    assert device.budget.used == 0


def test_messages_are_answered_between_the_weights_of_a_long_load(serve, connect, tmp_path):
    device = GatedDevice()
    program = linear_program(4, 4, layers=20)
    path = tmp_path / "blob"
    path.write_bytes(random_weight(80, 4).tobytes())
    peer = connect(serve(device, find_blob={BLOB: path}.get))
    peer.greet()
    device.shut()
    assert peer.ask(define_of(program, blob=BLOB)) == Defined(program.id, ())
    peer.send(Ping(1), payload=np.zeros(0, np.uint8))
    for _ in program.weights:
        if peer.router.poll(100):
            break
        device.gate.release()
    assert peer.receive().message == Pong(1)
    device.gate.release(100)
    assert isinstance(peer.receive().message, Ready)


def test_outputs_in_flight_do_not_overwrite_each_other(serve, connect, device):
    """Large ones have a frame of their own, which libzmq reads when it gets to it."""
    program = linear_program(4096, 4)
    weight = random_weight(4096, 4)
    peer = connect(serve(device))
    peer.greet()
    assert peer.ask(define_of(program)) == Defined(program.id, ("w",))
    for put, chunk in chunks_of(program, weight, size=1 << 16):
        peer.send(put, chunk=chunk)
        peer.receive()
    assert isinstance(peer.receive().message, Ready)
    T = 8
    inputs = [np.full((T, 4), i + 1, np.float32) for i in range(30)]
    assert T * 4096 * 4 > INLINE_NBYTES
    for i, x in enumerate(inputs):
        peer.send(run_of(program, T, microbatch=i), input=x)
    results = [peer.receive() for _ in inputs]
    for i, result in enumerate(results):
        assert result.message.microbatch == i
        np.testing.assert_allclose(result.tensors["output"], inputs[i] @ weight.T, rtol=1e-4, atol=1e-4)


def test_an_output_that_would_cost_the_connection_fails_instead(serve, connect, device, monkeypatch):
    peer = connect(serve(device))
    peer.greet()
    make_ready(peer)
    monkeypatch.setattr(sockets, "MAX_FRAME_BYTES", 16)
    failed = peer.ask(run_of(PROGRAM, 1), input=X)
    assert failed == Failed(PROGRAM.id, 1, "LocalProtocolError", "tensor of 32 bytes, at most 16")


def test_a_program_of_many_weights_is_answered_with_all_that_are_missing(serve, connect, device):
    program = linear_program(4, 4, weight="blk." + "w" * 110, layers=3000)
    peer = connect(serve(device))
    peer.greet()
    answer = peer.ask(define_of(program))
    assert isinstance(answer, Defined)
    assert answer.missing == tuple(spec.name for spec in program.weights)


def test_an_answer_that_fits_no_message_ends_nothing_but_the_sequence(serve, connect, device, monkeypatch):
    peer = connect(serve(device))
    peer.greet()
    monkeypatch.setattr(Defined, "max_header_bytes", 10)
    peer.send(define_of(PROGRAM))
    peer.send(Ping(7), payload=np.zeros(1, np.uint8))
    answer = peer.receive()
    assert (answer.message, answer.seq) == (Pong(7), 2)


def test_a_lost_message_shows_in_the_sequence(serve, connect, device):
    peer = connect(serve(device))
    peer.greet()
    peer.seq += 1
    assert peer.ask(Ping(1), payload=np.zeros(0, np.uint8)) == Failed(
        b"", -1, "RemoteProtocolError", "message 1 of epoch 1 did not arrive, 2 did"
    )


def test_a_repeated_microbatch_is_answered_once(serve, connect, device):
    peer = connect(serve(device))
    peer.greet()
    make_ready(peer)
    run = run_of(PROGRAM, 1)
    for microbatch in (5, 5, 6):
        peer.send(msgspec.structs.replace(run, microbatch=microbatch), input=X)
    assert [peer.receive().message.microbatch for _ in range(2)] == [5, 6]


def test_a_port_in_use_is_named_and_nothing_is_left_open(context, serve, device):
    taken = serve(device, zap=False)
    port = taken.bound_endpoint.rpartition(":")[2]
    with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 is in use"):
        WorkerLoop(None, taken.bound_endpoint, device, name="box:1", find_blob=lambda blob: None, zap=True)


def test_a_loop_that_never_ran_closes_everything(device):
    loop = WorkerLoop(None, "tcp://127.0.0.1:*", device, name="box:1", find_blob=lambda blob: None, zap=True)
    loop.close()


def test_a_worker_is_called_by_the_port_that_was_chosen(context, device):
    loop = WorkerLoop(context, "tcp://127.0.0.1:*", device, name="box:*", find_blob=lambda blob: None, zap=False)
    loop.close()
    assert loop.worker.name == f"box:{loop.port}"
    assert loop.port > 0


def test_a_worker_that_is_stopped_says_bye_to_its_broker(serve, connect, device):
    worker = serve(device)
    peer = connect(worker)
    peer.greet()
    worker.stop()
    assert peer.receive().message == Bye()

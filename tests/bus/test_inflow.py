"""What a peer may make libzmq keep: bytes of messages that do not end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

import numpy as np
import pytest
import zmq

from ollama_zmq.bus import inflow
from ollama_zmq.bus.inflow import (
    CREDIT_BYTES,
    CREDIT_BYTES_PER_S,
    MAX_UNTRUSTED,
    TRUSTED_BYTES,
    UNACCOUNTED_BYTES,
    UNTRUSTED_BYTES,
    Inflow,
    InflowGuard,
    frame_nbytes,
)
from ollama_zmq.bus.sockets import MAX_FRAME_BYTES
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope, encode
from ollama_zmq.wire.messages import Hello, Ping, Pong, Welcome
from tests.bus.peer import DEADLINE_S

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06ROUTER\x08Identity\0\0\0\0"
LIMITS = [(False, UNTRUSTED_BYTES), (True, TRUSTED_BYTES)]


@pytest.mark.parametrize(("trusted", "limit"), LIMITS)
def test_what_does_not_come_out_is_cut_above_the_limit(trusted, limit):
    flow = Inflow(0.0, trusted)
    assert flow.excess(CREDIT_BYTES + limit, 0, 0.0) == ""
    assert "without the end of a message" in flow.excess(CREDIT_BYTES + limit + 1, 0, 0.0)


@pytest.mark.parametrize(("trusted", "limit"), LIMITS)
def test_what_came_out_does_not_count(trusted, limit):
    flow = Inflow(0.0, trusted)
    flow.consumed = 1 << 40
    assert flow.excess((1 << 40) + limit, 0, 0.0) == ""


def test_a_year_of_heartbeats_is_not_taken_for_a_message():
    year_s = 365 * 86400
    heartbeats = 2 * 10 * year_s  # a PING a second and a PONG for each of the other side's
    assert heartbeats < CREDIT_BYTES_PER_S * year_s
    assert Inflow(0.0).excess(heartbeats, 0, float(year_s)) == ""


def test_a_message_of_empty_frames_is_cut_by_the_memory_that_it_takes():
    flow = Inflow(0.0, trusted=True)
    held = CREDIT_BYTES + 2 * UNTRUSTED_BYTES
    assert flow.excess(held, 100, 0.0) == ""
    assert flow.excess(held, 100 + UNACCOUNTED_BYTES, 0.0) == ""
    assert "takes" in flow.excess(held, 101 + UNACCOUNTED_BYTES, 0.0)


def test_memory_that_grows_while_messages_come_out_is_not_the_peers():
    flow = Inflow(0.0, trusted=True)
    for step in range(5):
        flow.consumed = step
        assert flow.excess(2 * UNTRUSTED_BYTES + CREDIT_BYTES + step, step * 2 * UNACCOUNTED_BYTES, 0.0) == ""


def test_answers_that_nobody_reads_are_cut_above_the_limit():
    flow = Inflow(0.0, trusted=True)
    flow.sent = 1000 + TRUSTED_BYTES
    assert flow.excess(0, 0, 0.0, acknowledged=1000) == ""
    assert "answers that it does not read" in flow.excess(0, 0, 0.0, acknowledged=999)


def test_the_largest_message_fits_several_times():
    assert 4 * MAX_FRAME_BYTES < TRUSTED_BYTES


@pytest.fixture
def guard():
    made = InflowGuard(lambda: 0)
    yield made
    made.close()


@pytest.fixture
def pair():
    """(this end, the other end) of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    with near, far:
        far.settimeout(DEADLINE_S)
        yield near, far


def is_closed(connection):
    """Whether the other side ends *connection* before the deadline."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def test_a_connection_over_its_limit_is_shut_down_and_the_reason_kept(guard, pair, monkeypatch):
    monkeypatch.setattr(inflow, "UNTRUSTED_BYTES", 100_000)
    near, far = pair
    guard.opened(near.fileno())
    far.sendall(bytes(100_000 + CREDIT_BYTES + 10_000))
    assert is_closed(far)
    assert "without the end of a message, at most 100 KB" in guard.closed(near.fileno())
    assert guard.closed(near.fileno()) == ""


def test_another_connection_under_the_same_number_is_left_alone(guard, pair, monkeypatch):
    near, _ = pair
    looked, check = threading.Semaphore(0), InflowGuard._check

    def counted(*args):
        check(*args)
        looked.release()

    guard.opened(near.fileno())
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as other:
        accepted, _ = listener.accept()
        with accepted:
            descriptor = near.detach()
            inflow.os.dup2(accepted.fileno(), descriptor)
            monkeypatch.setattr(InflowGuard, "_check", counted)
            for _ in range(2):  # a look that began before is over
                assert looked.acquire(timeout=DEADLINE_S)
            monkeypatch.setattr(inflow, "UNTRUSTED_BYTES", -(1 << 30))
            for _ in range(3):
                assert looked.acquire(timeout=DEADLINE_S)
                other.sendall(b"x")
                assert accepted.recv(1) == b"x"
            inflow.os.close(descriptor)


def test_the_oldest_of_too_many_strangers_goes(guard, pair, monkeypatch):
    monkeypatch.setattr(inflow, "MAX_UNTRUSTED", 1)
    near, far = pair
    guard.opened(near.fileno())
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as newer:
        accepted, _ = listener.accept()
        with accepted:
            guard.opened(accepted.fileno())
            assert is_closed(far)
            newer.sendall(b"x")
            assert accepted.recv(1) == b"x"
    assert "more than 1 connections" in guard.closed(near.fileno())
    assert MAX_UNTRUSTED >= 64


def raw_peer(endpoint):
    """A connection through the ZMTP handshake, by hand."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    s = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
    s.sendall(GREETING)
    got = b""
    while len(got) < len(GREETING):
        got += s.recv(len(GREETING) - len(got))
    s.sendall(bytes([4, len(READY)]) + READY)
    flags, length = s.recv(2)
    assert flags == 4
    while length:
        length -= len(s.recv(length))
    return s


def endless(connection, chunk):
    """Send frames of one message until the connection breaks; return how many bytes were sent."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < 1 << 30:
            connection.sendall(chunk)
            sent += len(chunk)
    return sent


@pytest.mark.parametrize("frame", [b"\x03" + struct.pack(">Q", 1 << 20) + bytes(1 << 20), 10_000 * b"\x01\x00"])
def test_a_message_without_end_costs_its_sender_the_connection_and_the_worker_goes_on(serve, connect, device, frame):
    loop = serve(device)
    with raw_peer(loop.bound_endpoint) as liar:
        assert endless(liar, frame) < 1 << 28
    peer = connect(loop)
    peer.greet()
    assert peer.ask(Ping(1), payload=np.zeros(1 << 20, np.uint8)) == Pong(1)


def zmtp(parts):
    """One message as libzmq writes it, all frames long."""
    flags = [3] * (len(parts) - 1) + [2]
    return b"".join(
        bytes([flag]) + struct.pack(">Q", len(part)) + part for flag, part in zip(flags, parts, strict=True)
    )


def test_a_broker_that_reads_no_answers_is_cut(serve, connect, device, monkeypatch):
    reasons = []
    monkeypatch.setattr(inflow, "TRUSTED_BYTES", 16 << 20)
    monkeypatch.setattr(InflowGuard, "_log_cut", lambda _self, _peer, why: reasons.append(why))
    loop = serve(device)
    deadline = time.monotonic() + 3 * DEADLINE_S
    with raw_peer(loop.bound_endpoint) as deaf, contextlib.suppress(OSError):
        for seq in range(1000):
            message = Hello(VERSION, PROTOCOL, "a") if seq == 0 else Ping(seq)
            tensors = {"payload": np.zeros(1 << 20, np.uint8)} if seq else {}
            heard_at = loop.worker.heard_at
            deaf.sendall(zmtp(encode(Envelope(message, tensors, 1, seq))))
            while loop.worker.heard_at == heard_at and not reasons and time.monotonic() < deadline:
                time.sleep(0)  # one at a time, so that nothing waits at the worker
    (reason,) = reasons
    assert "answers that it does not read" in reason
    assert isinstance(connect(loop).greet(), Welcome)


def test_a_handshake_without_end_is_cut(serve, device):
    loop = serve(device)
    host, _, port = loop.bound_endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as liar:
        liar.sendall(GREETING + b"\x06" + struct.pack(">Q", 1 << 30))
        assert endless(liar, bytes(1 << 16)) < 1 << 28  # what comes between two looks at it depends on the machine


def test_frames_are_counted_as_libzmq_writes_them(context, guard):
    dealer = context.socket(zmq.DEALER)
    port = dealer.bind_to_random_port("tcp://127.0.0.1")
    with raw_peer(f"tcp://127.0.0.1:{port}") as peer:
        for length in (0, 255, 256, 70_000):
            dealer.send(bytes(length))
            want, got = frame_nbytes(length), b""
            while len(got) < want:
                got += peer.recv(want - len(got))
        peer.settimeout(0)
        with pytest.raises(BlockingIOError):
            peer.recv(1)
    dealer.close(0)

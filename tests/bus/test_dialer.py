"""Connections of the broker: a probe before each, one attempt of libzmq, and the next one only when it is wanted."""

from __future__ import annotations

import select
import socket
import time

import pytest
import zmq

from ollama_zmq.bus.dialer import Dialer
from ollama_zmq.bus.probe import SIGNATURE
from ollama_zmq.bus.sockets import bind, broker_socket, worker_socket
from ollama_zmq.cluster.events import Attached, ConnectionFailed, ConnectionLost
from ollama_zmq.errors import Unreachable
from tests.bus.peer import DEADLINE_S

HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"


@pytest.fixture
def router(context):
    with broker_socket(context, "a" * 16) as made:
        yield made


@pytest.fixture
def dialer(router):
    made = Dialer(router, own_ports=frozenset({11434}))
    yield made
    made.close()


@pytest.fixture
def worker(context):
    """Makes bound workers, which are closed after the test."""
    made = []

    def make(endpoint="tcp://127.0.0.1:*"):
        made.append(worker_socket(context, endpoint))
        return made[-1], bind(made[-1], endpoint)

    yield make
    for dealer in made:
        dealer.close(0)


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(DEADLINE_S)
        yield made, f"tcp://127.0.0.1:{made.getsockname()[1]}"


def wait_for(dialer, kind, *served):
    """Return the next event, which must be a *kind*; *served* sockets are looked at meanwhile."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for each in served:
            each.poll(0)
        events, _ = dialer.advance(time.monotonic())
        if events:
            assert [type(event) for event in events] == [kind], events
            return events[0]
        monitor, probes = dialer.sources
        zmq.select([monitor, probes], [], [], 0.05)
    raise AssertionError(f"no {kind.__name__}")


def test_a_worker_is_attached_and_hears_what_is_sent(dialer, worker):
    dealer, endpoint = worker()
    dialer.dial("a", (endpoint,), 1, time.monotonic())
    assert wait_for(dialer, Attached, dealer) == Attached("a", 1)
    dialer.send("a", 1, [b"hello"])
    assert dealer.poll(int(DEADLINE_S * 1000))
    assert dealer.recv() == b"hello"


def test_an_older_epoch_is_fenced(dialer, worker):
    dealer, endpoint = worker()
    dialer.dial("a", (endpoint,), 2, time.monotonic())
    wait_for(dialer, Attached, dealer)
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        dialer.send("a", 1, [b"stale"])
    dialer.hang_up("a")
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        dialer.send("a", 2, [b"gone"])


def test_a_stranger_is_looked_at_once_and_never_meets_libzmq(dialer, listener):
    server, endpoint = listener
    dialer.dial("a", (endpoint,), 1, time.monotonic())
    select.select([dialer.sources[1]], [], [], DEADLINE_S)
    dialer.advance(time.monotonic())
    peer, _ = server.accept()
    with peer:
        assert peer.recv(64) == SIGNATURE
        peer.sendall(HTTP)
        failed = wait_for(dialer, ConnectionFailed)
        assert (failed.final, "not as an ollama-zmq worker" in failed.reason) == (True, True)
    assert dialer.next_deadline() == float("inf")
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_a_worker_that_starts_late_is_found(dialer, worker):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        dialer.dial("a", (endpoint,), 1, time.monotonic())
        failed = wait_for(dialer, ConnectionFailed)
    assert (failed.final, failed.reason.startswith("nobody listens at a")) == (False, True)
    assert dialer.next_deadline() < float("inf")
    dealer, _ = worker(endpoint)
    while True:
        events, _ = dialer.advance(dialer.next_deadline())
        if any(isinstance(event, Attached) for event in events):
            return
        dealer.poll(20)


def test_a_lost_connection_is_told_once_and_not_made_again(dialer, worker):
    dealer, endpoint = worker()
    dialer.dial("a", (endpoint,), 1, time.monotonic())
    wait_for(dialer, Attached, dealer)
    dealer.close(0)
    assert wait_for(dialer, ConnectionLost).address == "a"
    with socket.create_server(("127.0.0.1", int(endpoint.rpartition(":")[2]))) as other:
        assert dialer.next_deadline() == float("inf")
        assert not select.select([other], [], [], 0.3)[0]  # libzmq's own first try came after 0.1 s


def test_who_was_hung_up_while_probed_says_nothing(dialer, listener):
    dialer.dial("a", (listener[1],), 1, 0.0)
    dialer.hang_up("a")
    assert dialer.next_deadline() == float("inf")
    assert dialer.advance(1e9) == ([], [])


def test_the_pause_between_tries_doubles_up_to_two_seconds(dialer):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dialer.dial("a", (f"tcp://127.0.0.1:{unused.getsockname()[1]}",), 1, 0.0)
        now, pauses = 0.0, []
        while len(pauses) < 8:
            if dialer.advance(now)[0]:
                pauses.append(dialer.next_deadline() - now)
                now = dialer.next_deadline()
                dialer.advance(now)
            assert select.select([dialer.sources[1]], [], [], DEADLINE_S)[0]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


def test_what_libzmq_cannot_connect_to_has_failed(dialer, worker, monkeypatch):
    def refuse(*_):
        raise Unreachable("no such endpoint")

    monkeypatch.setattr("ollama_zmq.bus.sockets.connect", refuse)
    dealer, endpoint = worker()
    dialer.dial("a", (endpoint,), 1, time.monotonic())
    assert wait_for(dialer, ConnectionFailed, dealer).reason == "no such endpoint"


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:11434", "tcp://[::1]:11434"])
def test_this_server_itself_is_never_dialled(dialer, endpoint):
    with pytest.raises(Unreachable, match="localhost:11434 is this server itself, not a worker"):
        dialer.dial("localhost:11434", (endpoint,), 1, 0.0)
    dialer.dial("192.0.2.1:11434", ("tcp://192.0.2.1:11434",), 1, 0.0)


def test_two_names_of_one_worker_are_one(dialer, listener):
    _, endpoint = listener
    dialer.dial("box:1", (endpoint,), 1, 0.0)
    with pytest.raises(Unreachable, match=r"10.0.0.1:1 and box:1 are the same worker: list it once"):
        dialer.dial("10.0.0.1:1", (endpoint,), 2, 0.0)
    dialer.hang_up("box:1")
    dialer.dial("10.0.0.1:1", (endpoint,), 3, 0.0)


def test_every_address_of_a_name_is_tried(dialer, worker):
    """The first refuses, as ::1 does where a worker listens on 127.0.0.1 alone."""
    dealer, endpoint = worker()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        dialer.dial("a", (nobody, endpoint), 1, time.monotonic())
        assert wait_for(dialer, Attached, dealer).address == "a"

"""A look at an address: what listens there, told apart."""

from __future__ import annotations

import errno
import select
import socket
import struct
import time

import pytest

from ollama_zmq.bus import probe
from ollama_zmq.bus.connections import failure_of_probe
from ollama_zmq.bus.probe import SIGNATURE, Outcome, Probed, Probes
from ollama_zmq.bus.sockets import bind, worker_socket
from tests.bus.peer import DEADLINE_S


@pytest.fixture
def probes():
    made = Probes()
    yield made
    made.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def endpoint_of(listener):
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def outcome_of(probes, endpoint, answer=None, listener=None):
    """Probe *endpoint*, where *listener* sends *answer* at once, and the end if that is short."""
    probes.start("a", endpoint, time.monotonic())
    if listener is not None:
        peer, _ = listener.accept()
        peer.sendall(answer)
        if len(answer) < len(SIGNATURE):
            peer.shutdown(socket.SHUT_WR)
    ended = []
    deadline = time.monotonic() + DEADLINE_S
    while not ended and time.monotonic() < deadline:
        select.select([probes], [], [], 0.1)
        ended = probes.advance(time.monotonic())
    if listener is not None:
        peer.close()
    (probed,) = ended
    assert probed.key == "a"
    assert probes.next_deadline() == float("inf")
    return probed.outcome


def test_a_worker_is_greeted(probes, context):
    with worker_socket(context, "tcp://127.0.0.1:*") as dealer:
        assert outcome_of(probes, bind(dealer, "tcp://127.0.0.1:*")) is Outcome.GREETED


def test_a_worker_at_an_ipv6_address_is_greeted(probes, context):
    with worker_socket(context, "tcp://[::1]:*") as dealer:
        assert outcome_of(probes, bind(dealer, "tcp://[::1]:*")) is Outcome.GREETED


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (SIGNATURE, Outcome.GREETED),
        (b"\xff" + bytes(8) + b"\x7f\x03\x01NULL", Outcome.GREETED),
        (b"\xff" + bytes(8) + b"\x7e", Outcome.STRANGER),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Outcome.STRANGER),
        (b"\x08" + bytes(8), Outcome.STRANGER),  # llama.cpp's rpc-server begins with the length of its answer
        (b"", Outcome.ENDED),
        (SIGNATURE[:9], Outcome.ENDED),
    ],
)
def test_what_answers_is_told_apart(probes, listener, answer, outcome):
    assert outcome_of(probes, endpoint_of(listener), answer, listener) is outcome


def test_a_connection_that_is_reset_has_ended(probes, listener):
    now = time.monotonic()
    probes.start("a", endpoint_of(listener), now)
    select.select([probes], [], [], DEADLINE_S)
    assert probes.advance(now) == []  # it is connected
    peer, _ = listener.accept()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    select.select([probes], [], [], DEADLINE_S)
    (probed,) = probes.advance(now)
    assert probed.outcome is Outcome.ENDED


def test_a_port_where_nothing_listens_refuses(probes):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert outcome_of(probes, endpoint_of(unused)) is Outcome.REFUSED


def test_a_listener_that_says_nothing_is_silent_when_its_time_is_over(probes, listener):
    probes.start("a", endpoint_of(listener), 100.0)
    peer, _ = listener.accept()
    assert select.select([probes], [], [], DEADLINE_S)[0]
    assert probes.advance(101.0) == []
    assert probes.next_deadline() == 101.0 + probe.GREETING_TIMEOUT_S
    assert probes.advance(102.9) == []
    assert probes.advance(103.0) == [Probed("a", Outcome.SILENT)]
    peer.close()


class Elsewhere(socket.socket):
    """A socket whose connection attempt goes nowhere: ``code`` says how."""

    code = errno.EINPROGRESS

    def connect_ex(self, address):
        return self.code


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (errno.EHOSTUNREACH, Outcome.UNREACHABLE),
        (errno.ENETUNREACH, Outcome.UNREACHABLE),
        (errno.ETIMEDOUT, Outcome.NO_ANSWER),
    ],
)
def test_a_network_that_says_no_is_told_apart(probes, monkeypatch, code, outcome):
    monkeypatch.setattr(Elsewhere, "code", code)
    monkeypatch.setattr(probe.socket, "socket", Elsewhere)
    probes.start("a", "tcp://192.0.2.1:50052", 0.0)
    assert probes.next_deadline() == 0.0
    assert [probed.outcome for probed in probes.advance(0.0)] == [outcome]


def test_packets_that_are_swallowed_are_no_answer(probes, monkeypatch):
    """A socket that was never connected looks like one whose SYN nobody answers, but for being writable."""
    monkeypatch.setattr(probes, "_selector", NeverReady())
    monkeypatch.setattr(probe.socket, "socket", Elsewhere)
    probes.start("a", "tcp://192.0.2.1:50052", 10.0)
    assert probes.advance(11.9) == []
    assert probes.advance(12.0) == [Probed("a", Outcome.NO_ANSWER)]


class NeverReady:
    def register(self, *_):
        pass

    def unregister(self, _):
        pass

    def select(self, _):
        return []

    def close(self):
        pass


def test_a_cancelled_probe_says_nothing(probes, listener):
    probes.start("a", endpoint_of(listener), 0.0)
    probes.cancel("a")
    probes.start("b", "tcp://no address:1", 0.0)
    probes.cancel("b")
    assert probes.advance(1e9) == []


@pytest.mark.parametrize(
    ("outcome", "words", "final"),
    [
        (Outcome.REFUSED, "nobody listens at box:1: start `ollama rpc-server -H", False),
        (Outcome.UNREACHABLE, "box:1 cannot be reached (no route to host)", True),
        (Outcome.NO_ANSWER, "no answer from box:1 within 2 s: is the machine on", True),
        (Outcome.SILENT, "box:1 takes connections but sent nothing within 2 s: is its process stopped", True),
        (Outcome.STRANGER, "box:1 answers, but not as an ollama-zmq worker", True),
        (Outcome.ENDED, "box:1 takes connections and closes them at once", False),
    ],
)
def test_each_outcome_has_its_words_and_what_a_starting_worker_shows_is_not_final(outcome, words, final):
    failed = failure_of_probe("box:1", 1, Probed("box:1", outcome, "no route to host"))
    assert words in failed.reason
    assert failed.final is final

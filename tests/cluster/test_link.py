"""The link's table, row by row, and what it measures."""

from __future__ import annotations

import numpy as np
import pytest

from ollama_zmq.cluster.events import Connect, Disconnect, Effect, Send
from ollama_zmq.cluster.link import BANDWIDTH_BYTES, JOIN_LIMIT_S, PING_S, REFUSED_GRACE_S, RTT_BYTES, Link, Status
from ollama_zmq.cluster.view import worker_state
from ollama_zmq.errors import RemoteProtocolError
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.messages import Bye, Hello, Ping, Pong, Refused
from tests.cluster.fake_workers import welcome

A = "10.0.0.10:50052"
EPOCH = 7


@pytest.fixture
def connecting() -> Link:
    link = Link(A, "broker")
    assert link.join(EPOCH, 0.0) == [Connect(A, EPOCH)]
    return link


@pytest.fixture
def greeting(connecting: Link) -> Link:
    assert connecting.attached(0.0) == []
    assert connecting.status is Status.WAITING
    [hello] = connecting.start_handshake(10.0)
    assert hello.envelope.message == Hello(VERSION, PROTOCOL, "broker")
    return connecting


@pytest.fixture
def ready(greeting: Link) -> Link:
    [ping] = greeting.receive(welcome(), {}, 10.0)
    while greeting.status is Status.MEASURING:
        [ping] = answer(greeting, ping, 10.0) or [None]
    assert greeting.status is Status.READY
    return greeting


def payload_nbytes(effect: Send) -> int:
    assert isinstance(effect.envelope.message, Ping)
    return effect.envelope.tensors["payload"].nbytes


def answer(link: Link, ping: Send, now: float) -> list[Effect]:
    """What the link does when the worker answers *ping* as it should."""
    assert isinstance(ping.envelope.message, Ping)
    return link.receive(Pong(ping.envelope.message.nonce), ping.envelope.tensors, now)


def test_the_round_trip_is_the_median_of_small_pings_and_the_bandwidth_that_of_a_large_one(greeting):
    now, sizes = 10.5, []
    effects = greeting.receive(welcome(), {}, now)
    for took_s in (0.004, 0.001, 0.002, 0.009, 0.003, 0.103):
        sizes += [payload_nbytes(effect) for effect in effects]
        now += took_s
        effects = answer(greeting, *effects, now)
    assert sizes == [RTT_BYTES] * 5 + [BANDWIDTH_BYTES]
    assert (effects, greeting.status) == ([], Status.READY)
    assert greeting.rtt_s == pytest.approx(0.003)
    assert greeting.bandwidth_bytes_per_s == pytest.approx(2 * BANDWIDTH_BYTES / 0.1)


@pytest.mark.parametrize(("nonce", "nbytes"), [(1, RTT_BYTES), (0, 0), (0, RTT_BYTES - 1), (0, BANDWIDTH_BYTES)])
def test_an_answer_to_another_ping_or_with_less_than_was_sent_measures_nothing(greeting, nonce, nbytes):
    """Who answers before he has all of it would have the fastest link."""
    greeting.receive(welcome(), {}, 10.5)
    with pytest.raises(
        RemoteProtocolError, match=rf"pong {nonce} with {nbytes} bytes .* ping 0 with {RTT_BYTES} bytes"
    ):
        greeting.receive(Pong(nonce), {"payload": np.zeros(nbytes, np.uint8)}, 10.5)
    assert greeting.probes == []


def test_every_ping_has_a_number_of_its_own(ready):
    nonces = [effect.envelope.message.nonce for n in (1, 2, 3) for effect in ready.tick(10.0 + n * (PING_S + 0.1))]
    assert nonces == [6, 7, 8]


def test_a_refused_connection_is_given_up_after_its_grace(connecting):
    assert connecting.connection_failed("nobody", final=False, now=REFUSED_GRACE_S - 0.01) == []
    assert connecting.status is Status.CONNECTING
    assert connecting.connection_failed("nobody", final=False, now=REFUSED_GRACE_S) == [Disconnect(A)]
    assert (connecting.status, connecting.detail) == (Status.LOST, "nobody")


def test_a_final_refusal_needs_no_grace(connecting):
    assert connecting.connection_failed("leased", final=True, now=0.0) == [Disconnect(A)]


def test_a_connection_that_breaks_is_one_attempt_while_connecting_and_the_end_afterwards(connecting):
    assert connecting.connection_lost("gone") == []
    connecting.attached(0.0)
    assert connecting.connection_lost("gone") == [Disconnect(A)]
    assert (connecting.status, connecting.detail) == (Status.LOST, "gone")
    assert connecting.connection_lost("gone again") == connecting.connection_failed("too", final=True, now=1.0) == []
    assert connecting.detail == "gone"


def test_who_does_not_answer_is_given_up_and_told_apart_from_who_is_not_there(connecting):
    assert connecting.tick(JOIN_LIMIT_S) == []
    assert connecting.tick(JOIN_LIMIT_S + 0.1) == [Disconnect(A)]
    assert connecting.detail == f"no answer from {A} within 5 s: is the machine on, and the port open?"


def test_a_welcome_that_does_not_come_is_counted_from_the_greeting(greeting):
    assert greeting.tick(10.0 + JOIN_LIMIT_S) == []
    assert greeting.tick(10.1 + JOIN_LIMIT_S) == [Disconnect(A)]
    assert greeting.detail.startswith(f"worker {A} took the connection but did not answer within 5 s: is its process")


def test_who_waits_for_its_turn_is_not_late(connecting):
    connecting.attached(0.0)
    assert connecting.tick(100.0) == []
    assert connecting.status is Status.WAITING


def test_a_refusal_names_the_worker(greeting):
    assert greeting.receive(Refused("leased", VERSION, PROTOCOL), {}, 10.1) == [Disconnect(A)]
    assert (greeting.status, greeting.detail) == (Status.REFUSED, f"{A}: leased")


def test_a_ready_worker_is_pinged_in_time_with_nothing(ready):
    assert ready.tick(10.0 + PING_S) == []
    [ping] = ready.tick(10.1 + PING_S)
    assert payload_nbytes(ping) == 0
    assert ready.tick(10.2 + PING_S) == []


def test_messages_are_numbered_in_their_epoch_and_a_gap_is_refused(ready):
    numbers = [ready.send(Ping(0)).envelope.seq for _ in range(2)]
    assert numbers[1] == numbers[0] + 1
    ready.count(0)
    with pytest.raises(RemoteProtocolError, match="message 2 arrived, 1 was next"):
        ready.count(2)
    ready.join(EPOCH + 1, 20.0)
    assert (ready.send(Ping(0)).envelope.seq, ready.send(Ping(0)).envelope.epoch) == (0, EPOCH + 1)
    ready.count(0)


def test_a_worker_that_was_lost_before_gets_no_grace(ready):
    ready.drop(Status.LOST, "gone")
    ready.join(EPOCH + 1, 20.0)
    assert ready.connection_failed("nobody", final=False, now=20.0) == [Disconnect(A)]
    assert ready.detail == "nobody"


def test_the_last_reason_is_told_when_the_time_is_up(connecting):
    assert connecting.connection_failed("it closes at once", final=False, now=0.1) == []
    connecting.tick(JOIN_LIMIT_S + 0.1)
    assert connecting.detail == "it closes at once"


def test_why_a_foreign_worker_is_missing_is_for_the_log_alone(connecting):
    connecting.foreign = True
    connecting.connection_failed("10.0.0.10:50052 answers like HTTP", final=True, now=0.1)
    assert (
        connecting.why
        == worker_state(connecting, {}).detail
        == f"worker {A} is not available; the server's log says why"
    )
    assert connecting.detail == "10.0.0.10:50052 answers like HTTP"


@pytest.mark.parametrize(
    ("address", "remote", "host"),
    [
        ("127.0.0.1:1", True, ""),
        ("localhost:1", True, ""),
        ("[::1]:1", True, ""),
        ("local", False, ""),
        ("10.0.0.1:1", True, "10.0.0.1"),
        ("[fe80::1]:1", True, "fe80::1"),
    ],
)
def test_addresses_of_this_machine_are_one_host(address, remote, host):
    assert Link(address, "broker", remote=remote).host == host


def test_a_worker_that_says_bye_is_lost_and_the_end_of_its_connection_changes_nothing(ready):
    assert ready.receive(Bye(), {}, 11.0) == [Disconnect(A)]
    assert ready.connection_lost(f"worker {A} is gone: the connection broke") == []
    assert (ready.status, ready.detail) == (Status.LOST, f"worker {A} was stopped")

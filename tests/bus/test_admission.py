"""Admission control: one connection at a time."""

from __future__ import annotations

import pytest

from ollama_zmq.bus.admission import HANDSHAKE_TIMEOUT_S, Admission
from ollama_zmq.bus.monitor import Accepted, Disconnected, Listening


def gone(fd):
    return Disconnected("tcp://127.0.0.1:1", fd)


@pytest.fixture
def admission():
    """Peer 1 came in at time 0 through descriptor 5."""
    admission = Admission()
    admission.advance(Accepted(5))
    assert admission.admit(0.0)
    return admission


def test_one_comes_in_and_the_next_does_not(admission):
    admission.advance(Accepted(6))
    assert not admission.admit(1.0)
    assert (admission.connected, admission.number) == (True, 1)


def test_a_known_peer_that_leaves_makes_room_though_others_wait(admission):
    admission.identify(1, 5)
    admission.advance(Accepted(6))
    assert admission.advance(gone(5))
    assert admission.admit(1.0)
    assert admission.number == 2


def test_a_refused_peer_that_leaves_changes_nothing(admission):
    admission.identify(1, 5)
    admission.advance(Accepted(6))
    assert not admission.advance(gone(6))
    assert not admission.admit(1.0)


def test_a_peer_that_never_spoke_has_left_when_no_connection_is_left(admission):
    admission.advance(Accepted(6))
    assert not admission.advance(gone(5))
    assert admission.advance(gone(6))
    admission.advance(Accepted(7))
    assert admission.admit(1.0)


def test_nobody_comes_in_before_the_lease_of_the_one_before_is_given_up(admission):
    admission.identify(1, 5)
    admission.lease(True, 0.5)
    admission.advance(Accepted(6))
    assert admission.advance(gone(5))
    assert not admission.admit(1.0)
    admission.lease(False, 1.5)
    assert admission.admit(2.0)


def test_a_descriptor_of_somebody_before_is_not_that_of_the_peer_inside(admission):
    admission.identify(0, 6)
    admission.advance(Accepted(6))
    assert not admission.advance(gone(6))


def test_nobody_is_let_in_who_has_hung_up_meanwhile(admission):
    admission.advance(gone(5))
    assert not admission.admit(1.0)


def test_listening_again_means_that_nobody_is_left(admission):
    assert admission.advance(Listening())
    admission.advance(Accepted(5))
    assert admission.admit(1.0)


def test_a_peer_without_a_lease_overstays(admission):
    assert not admission.handshake_expired(HANDSHAKE_TIMEOUT_S)
    assert admission.handshake_expired(HANDSHAKE_TIMEOUT_S + 0.1)


def test_a_peer_with_the_lease_may_stay(admission):
    admission.lease(True, 1.0)
    assert not admission.handshake_expired(1e6)


def test_a_peer_that_gave_the_lease_back_has_time_to_say_hello_again(admission):
    admission.lease(True, 1.0)
    admission.lease(False, 50.0)
    assert not admission.handshake_expired(50.0 + HANDSHAKE_TIMEOUT_S)
    assert admission.handshake_expired(50.1 + HANDSHAKE_TIMEOUT_S)


def test_an_empty_room_is_not_overstayed():
    assert not Admission().handshake_expired(1e6)

"""Admission control: many may be admitted, one is served."""

from __future__ import annotations

import pytest

from ollama_zmq.bus.admission import NOBODY, Admission
from ollama_zmq.bus.monitor import Accepted, Disconnected, Listening


def gone(fd):
    return Disconnected("tcp://127.0.0.1:1", fd)


@pytest.fixture
def admission():
    """Peers 1 and 2 are admitted, through descriptors 5 and 6 or 6 and 5: nobody knows."""
    made = Admission()
    for fd in (5, 6):
        made.advance(Accepted(fd))
        assert made.admit()
    return made


def test_the_first_that_speaks_is_served_and_all_others_must_go(admission):
    admission.advance(Accepted(7))
    assert admission.serve(2, 5)
    assert (admission.served, admission.descriptor, admission.leaving) == (2, 5, {6, 7})


def test_messages_of_others_are_dropped(admission):
    assert admission.serve(2, 5)
    assert not admission.serve(1, 6)
    assert admission.serve(2, 5)


def test_others_are_gone_when_their_connections_have_ended(admission):
    admission.serve(1, 5)
    assert not admission.advance(gone(6))
    assert admission.leaving == set()


def test_while_somebody_is_served_nobody_is_admitted(admission):
    admission.serve(1, 5)
    admission.advance(Accepted(7))
    assert not admission.admit()


def test_silent_peers_keep_nobody_out(admission):
    admission.advance(Accepted(7))
    assert admission.admit()
    assert admission.serve(3, 7)


def test_a_served_peer_that_disconnects_makes_room(admission):
    admission.serve(1, 5)
    admission.advance(gone(6))
    assert admission.advance(gone(5))
    admission.advance(Accepted(7))
    assert admission.admit()
    assert admission.serve(3, 7)


def test_what_a_peer_sent_that_has_disconnected_is_dropped(admission):
    admission.serve(1, 5)
    admission.advance(gone(5))
    admission.advance(Accepted(5))
    assert not admission.serve(1, 5)
    assert not admission.serve(2, 6)
    assert admission.served == NOBODY


def test_a_message_from_a_closed_connection_serves_nobody(admission):
    admission.advance(gone(5))
    assert not admission.serve(1, 5)
    assert admission.serve(2, 6)


def test_nobody_is_admitted_before_the_lease_of_the_one_before_is_given_up(admission):
    admission.serve(1, 5)
    admission.leased = True
    assert admission.advance(gone(5))
    admission.advance(Accepted(7))
    assert not admission.admit()
    admission.leased = False
    assert admission.admit()


def test_nobody_is_admitted_who_has_hung_up_meanwhile():
    admission = Admission()
    admission.advance(Accepted(5))
    admission.advance(gone(5))
    assert not admission.admit()


def test_listening_again_means_that_nobody_is_connected(admission):
    admission.serve(1, 5)
    assert admission.advance(Listening())
    assert not admission.admit()
    admission.advance(Accepted(5))
    assert admission.admit()

"""Who may come in: one connection at a time."""

from __future__ import annotations

import pytest
import zmq

from ollama_zmq.bus.monitor import Accepted, Disconnected, Listening
from ollama_zmq.bus.security import (
    GREETING_LIMIT_S,
    ZAP_ENDPOINT,
    Admission,
    Door,
    exposure_warning,
    is_loopback,
)
from ollama_zmq.bus.wakeup import Wakeup


def gone(fd):
    return Disconnected("tcp://127.0.0.1:1", fd)


@pytest.fixture
def inside():
    """Peer 1 came in at time 0 through descriptor 5."""
    admission = Admission()
    admission.advance(Accepted(5))
    assert admission.admit(0.0)
    return admission


def test_one_comes_in_and_the_next_does_not(inside):
    inside.advance(Accepted(6))
    assert not inside.admit(1.0)
    assert (inside.inside, inside.number) == (True, 1)


def test_a_known_peer_that_leaves_makes_room_though_others_wait(inside):
    inside.identify(1, 5)
    inside.advance(Accepted(6))
    assert inside.advance(gone(5))
    assert inside.admit(1.0)
    assert inside.number == 2


def test_a_refused_peer_that_leaves_changes_nothing(inside):
    inside.identify(1, 5)
    inside.advance(Accepted(6))
    assert not inside.advance(gone(6))
    assert not inside.admit(1.0)


def test_a_peer_that_never_spoke_has_left_when_no_connection_is_left(inside):
    inside.advance(Accepted(6))
    assert not inside.advance(gone(5))
    assert inside.advance(gone(6))
    inside.advance(Accepted(7))
    assert inside.admit(1.0)


def test_nobody_comes_in_before_the_lease_of_the_one_before_is_given_up(inside):
    inside.identify(1, 5)
    inside.lease(True, 0.5)
    inside.advance(Accepted(6))
    assert inside.advance(gone(5))
    assert not inside.admit(1.0)
    inside.lease(False, 1.5)
    assert inside.admit(2.0)


def test_a_descriptor_of_somebody_before_is_not_that_of_the_peer_inside(inside):
    inside.identify(0, 6)
    inside.advance(Accepted(6))
    assert not inside.advance(gone(6))


def test_nobody_is_let_in_who_has_hung_up_meanwhile(inside):
    inside.advance(gone(5))
    assert not inside.admit(1.0)


def test_listening_again_means_that_nobody_is_left(inside):
    assert inside.advance(Listening())
    inside.advance(Accepted(5))
    assert inside.admit(1.0)


def test_a_peer_without_a_lease_overstays(inside):
    assert not inside.overstays(GREETING_LIMIT_S)
    assert inside.overstays(GREETING_LIMIT_S + 0.1)


def test_a_peer_with_the_lease_may_stay(inside):
    inside.lease(True, 1.0)
    assert not inside.overstays(1e6)


def test_a_peer_that_gave_the_lease_back_has_time_to_say_hello_again(inside):
    inside.lease(True, 1.0)
    inside.lease(False, 50.0)
    assert not inside.overstays(50.0 + GREETING_LIMIT_S)
    assert inside.overstays(50.1 + GREETING_LIMIT_S)


def test_an_empty_room_is_not_overstayed():
    assert not Admission().overstays(1e6)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_these_addresses_are_of_this_machine_only(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.10", "::", "box", "", "127.0.0.1.example.com"])
def test_these_addresses_are_not(host):
    assert not is_loopback(host)


def test_the_warning_says_where_what_and_what_to_do():
    warning = exposure_warning("0.0.0.0", 50052)
    assert all(line.startswith("WARNING: ") for line in warning.splitlines())
    for words in ("0.0.0.0:50052", "neither encrypted", "nor authenticated", "127.0.0.1"):
        assert words in warning


def test_a_request_that_is_not_zap_is_refused_and_the_door_lives(context):
    door = Door(context, lambda: None)
    dealer = context.socket(zmq.DEALER)
    door.watch(dealer)
    with context.socket(zmq.REQ) as asker:
        asker.connect(ZAP_ENDPOINT)
        for request in ([b"2.0", b"7", b"", b"", b"", b"", b"NULL"], [b"1.0", b"8"], [b""]):
            asker.send_multipart(request)
            assert asker.poll(5000)
            assert asker.recv_multipart()[2] == b"400"
    door.close()
    dealer.close(0)


def test_a_context_has_one_door(context):
    door = Door(context, lambda: None)
    with pytest.raises(zmq.ZMQError):
        Door(context, lambda: None)
    door.close()


def test_a_poller_wakes_once_for_any_number_of_wakes():
    wakeup = Wakeup()
    poller = zmq.Poller()
    poller.register(wakeup.fileno(), zmq.POLLIN)
    assert not poller.poll(0)
    for _ in range(100_000):
        wakeup.wake()
    assert poller.poll(0)
    wakeup.clear()
    assert not poller.poll(0)
    wakeup.close()
    wakeup.wake()
    wakeup.close()

"""The ZAP authenticator, and what is said of listening where other machines reach."""

from __future__ import annotations

import pytest
import zmq

from ollama_zmq.bus.security import ZAP_ENDPOINT, ZapAuthenticator, exposure_warning
from ollama_zmq.bus.wakeup import Wakeup


def test_the_warning_says_where_what_and_what_to_do():
    warning = exposure_warning("0.0.0.0", 50052)
    assert all(line.startswith("WARNING: ") for line in warning.splitlines())
    for words in ("0.0.0.0:50052", "neither encrypted", "nor authenticated", "127.0.0.1"):
        assert words in warning


def test_a_request_that_is_not_zap_is_refused_and_the_authenticator_lives(context):
    authenticator = ZapAuthenticator(context, lambda: None)
    dealer = context.socket(zmq.DEALER)
    authenticator.watch(dealer)
    with context.socket(zmq.REQ) as asker:
        asker.connect(ZAP_ENDPOINT)
        for request in ([b"2.0", b"7", b"", b"", b"", b"", b"NULL"], [b"1.0", b"8"], [b""]):
            asker.send_multipart(request)
            assert asker.poll(60_000)
            assert asker.recv_multipart()[2] == b"400"
    authenticator.close()
    dealer.close(0)


def test_a_context_has_one_authenticator(context):
    authenticator = ZapAuthenticator(context, lambda: None)
    with pytest.raises(zmq.ZMQError):
        ZapAuthenticator(context, lambda: None)
    authenticator.close()


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

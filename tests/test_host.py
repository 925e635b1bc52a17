"""Which hosts are this machine, however they are written."""

from __future__ import annotations

import pytest

from ollama_zmq.bus.addresses import is_allowed
from ollama_zmq.cluster.link import Link
from ollama_zmq.host import is_loopback, is_unspecified, reachable

LOOPBACK = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "[::1]",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "localhost",
    "LOCALHOST",
    "localhost.",
]
OTHERS = ["0.0.0.0", "10.0.0.10", "::", "::ffff:10.0.0.10", "fe80::1", "box", "", "127.0.0.1.example.com"]


def address_of(host: str) -> str:
    return f"[{host.strip('[]')}]:50052" if ":" in host else f"{host}:50052"


@pytest.mark.parametrize("host", LOOPBACK)
def test_these_hosts_are_this_machine_to_whoever_asks(host):
    assert is_loopback(host)
    assert is_allowed(address_of(host), (), "")
    assert Link(address_of(host), "b").host == ""


@pytest.mark.parametrize("host", OTHERS)
def test_these_hosts_are_not(host):
    assert not is_loopback(host)
    assert not is_allowed(address_of(host), (), "")
    assert Link(address_of(host), "b").host == host


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("0:0:0:0:0:0:0:0", "::1"),
        ("10.0.0.10", "10.0.0.10"),
        ("box", "box"),
    ],
)
def test_a_host_that_means_every_interface_is_reached_by_loopback(host, expected):
    assert reachable(host) == expected
    assert is_unspecified(host) is (expected != host)

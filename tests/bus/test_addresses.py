"""Lists of workers as people write them."""

from __future__ import annotations

import pytest

from ollama_zmq.bus.addresses import parse_servers, resolve
from ollama_zmq.errors import RequestError


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", ()),
        ("10.0.0.10:50052, box2:50053", ("10.0.0.10:50052", "box2:50053")),
        ("box", ("box:50052",)),
        ("[::1]:50052,[::1]", None),
        ("a,,b:1,", ("a:50052", "b:1")),
    ],
)
def test_a_list_of_servers_is_read(text, servers):
    if servers is None:
        with pytest.raises(RequestError, match="listed twice"):
            parse_servers(text)
    else:
        assert parse_servers(text) == servers


@pytest.mark.parametrize("entry", ["box:0", "box:port", ":50052", "box:70000"])
def test_a_bad_server_is_named(entry):
    with pytest.raises(RequestError, match=f"rpc server '{entry}'"):
        parse_servers(f"good:1,{entry}")


def test_an_ipv4_address_is_preferred():
    assert resolve("localhost:5") in ("tcp://127.0.0.1:5", "tcp://[::1]:5")

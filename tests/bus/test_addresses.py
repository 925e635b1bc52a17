"""Lists of workers as people write them."""

from __future__ import annotations

import pytest

from ollama_zmq.bus.addresses import MAX_SERVERS, is_allowed, parse_servers, resolve_all
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


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("::1", "[::1]:50052"),
        ("[::1]", "[::1]:50052"),
        ("[::1]:5", "[::1]:5"),
        ("tcp://[fe80::1]:5", "[fe80::1]:5"),
        ("fe80::1:50052", "[fe80::1]:50052"),
    ],
)
def test_ipv6_addresses_have_brackets(text, address):
    assert parse_servers(text) == (address,)


@pytest.mark.parametrize("entry", ["[box]:5", "1:2:3", "[::1", "[::1]x", "[::1]:", "box:00000000000000000000005"])
def test_what_is_neither_a_name_nor_an_address_is_refused(entry):
    with pytest.raises(RequestError, match="expected host:port"):
        parse_servers(entry)


def test_a_list_has_an_end():
    assert len(parse_servers(",".join(f"box:{port}" for port in range(1, MAX_SERVERS + 1)))) == MAX_SERVERS
    with pytest.raises(RequestError, match="more than 64 rpc servers"):
        parse_servers(",".join(f"box:{port}" for port in range(1, MAX_SERVERS + 2)))


def test_addresses_are_found_ipv4_first_and_unknown_names_say_why():
    found = resolve_all(("127.0.0.1:5", "[::1]:6", "0.0.0.0:7", "[::]:8", "localhost:9", "no-such-host.invalid:1"))
    assert found["127.0.0.1:5"].endpoints == ("tcp://127.0.0.1:5",)
    assert found["[::1]:6"].endpoints == ("tcp://[::1]:6",)
    assert found["0.0.0.0:7"].endpoints == ("tcp://127.0.0.1:7",)
    assert found["[::]:8"].endpoints == ("tcp://[::1]:8",)
    assert found["localhost:9"].endpoints[0] in ("tcp://127.0.0.1:9", "tcp://[::1]:9")
    unknown = found["no-such-host.invalid:1"]
    assert unknown.endpoints == ()
    assert unknown.why.startswith("cannot resolve worker no-such-host.invalid:1: ")


def test_a_slip_in_an_address_is_told_as_that_and_not_as_a_name_that_may_be_known_later():
    (found,) = resolve_all(("10.99.0.256:50052",)).values()
    assert found.why == "cannot resolve worker 10.99.0.256:50052: 10.99.0.256 is no address and no known name"


@pytest.mark.parametrize(
    ("address", "own", "allowed", "may"),
    [
        ("127.0.0.1:5", (), "", True),
        ("localhost:5", (), "", True),
        ("[::1]:5", (), "", True),
        ("10.0.0.1:5", (), "", False),
        ("10.0.0.1:5", ("10.0.0.1:5",), "", True),
        ("127.0.0.1:5", ("10.0.0.1:5",), "", False),
        ("10.0.0.1:6", ("10.0.0.1:5",), "", False),
        ("10.0.0.1:5", ("10.0.0.1:5",), "box2", True),
        ("127.0.0.1:5", (), "box2", False),
        ("10.1.2.3:5", (), "box2, 10.1.0.0/16", True),
        ("10.2.2.3:5", (), "10.1.0.0/16", False),
        ("10.1.2.3:5", (), "10.1.2.3", True),
        ("10.1.2.3:5", (), "10.1.2.3:5", True),
        ("10.1.2.3:6", (), "10.1.2.3:5", False),
        ("[fe80::1]:6", (), "fe80::/10", True),
        ("BOX:5", (), "box", True),
        ("box.evil.example:5", (), "box", False),
        ("anything:5", (), "*", True),
    ],
)
def test_a_request_may_name_what_the_operator_allows(address, own, allowed, may):
    assert is_allowed(address, own, allowed) is may

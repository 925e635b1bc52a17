"""Options of every socket, refusals, and monitor events in our words."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import zmq

import ollama_zmq.bus
from ollama_zmq.bus import sockets
from ollama_zmq.bus.monitor import Accepted, Connected, Disconnected, Listening, Monitor, Retried
from ollama_zmq.bus.sockets import (
    MAX_FRAME_BYTES,
    bind,
    broker_socket,
    check_size,
    connect,
    rebind,
    worker_socket,
)
from ollama_zmq.errors import LocalProtocolError, RequestError, Unreachable
from ollama_zmq.wire.frames import INLINE_NBYTES, MAX_HEADER_BYTES, MAX_TENSORS
from ollama_zmq.wire.messages import CHUNK_BYTES
from tests.bus.peer import DEADLINE_S

SOURCES = [path.read_text() for path in Path(ollama_zmq.bus.__file__).parent.glob("*.py")]


@pytest.fixture
def dealer(context):
    with worker_socket(context, "tcp://127.0.0.1:*") as made:
        yield made


@pytest.fixture
def router(context):
    with broker_socket(context, "a" * 16) as made:
        yield made


@pytest.fixture
def watch():
    """Makes monitors; all are closed after the test."""
    made = []

    def open_monitor(watched):
        made.append((watched, Monitor(watched)))
        return made[-1][1]

    yield open_monitor
    for watched, monitor in made:
        watched.disable_monitor()
        monitor.close()


def wait_for(monitor, kind, *served):
    """Return the next event of *kind*; libzmq goes on with *served* sockets only while somebody looks at them."""
    for _ in range(int(DEADLINE_S * 10)):
        for each in served:
            each.poll(0)
        monitor.socket.poll(100)
        for event in monitor.events():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (zmq.LINGER, 0),
        (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
        (zmq.SNDHWM, sockets.QUEUE_MESSAGES),
        (zmq.RCVHWM, sockets.QUEUE_MESSAGES),
        (zmq.HANDSHAKE_IVL, 3000),
        (zmq.HEARTBEAT_IVL, 1000),
        (zmq.HEARTBEAT_TIMEOUT, 3000),
        (zmq.HEARTBEAT_TTL, 3000),
        (zmq.RECONNECT_IVL, 3_600_000),
        (zmq.RECONNECT_IVL_MAX, 0),
        (zmq.IMMEDIATE, 0),
    ],
)
def test_every_socket_has_the_options_of_the_table(dealer, router, option, value):
    assert dealer.getsockopt(option) == value
    assert router.getsockopt(option) == value


def test_a_hidden_state_of_512_tokens_crosses_in_one_frame():
    check_size(512 * 16384 * 4)
    assert CHUNK_BYTES <= MAX_FRAME_BYTES
    assert MAX_HEADER_BYTES + MAX_TENSORS * INLINE_NBYTES < MAX_FRAME_BYTES


def test_nothing_in_the_bus_uses_what_was_measured_to_hurt():
    for source in SOURCES:
        assert not re.search(r"zmq\.asyncio|import_module\(.zmq|zmq\.green", source)
        assert not re.search(r"\(zmq\.IMMEDIATE|\.immediate\b", source, re.IGNORECASE)
        assert not re.search(r"DISCONNECT_MSG|ROUTER_NOTIFY|HELLO_MSG|zmq\.(SERVER|CLIENT|RADIO|DISH|PEER)\b", source)


def test_a_routing_id_is_never_used_twice(dealer, router):
    endpoint = bind(dealer, "tcp://127.0.0.1:*")
    connect(router, endpoint, b"w#1")
    with pytest.raises(LocalProtocolError, match="routing id b'w#1' was used before"):
        connect(router, endpoint, b"w#1")
    router.disconnect(endpoint)
    with pytest.raises(LocalProtocolError):
        connect(router, endpoint, b"w#1")
    connect(router, endpoint, b"w#2")


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1", "nonsense", "xyz://a:1"])
def test_what_is_not_an_address_is_named(router, endpoint):
    with pytest.raises(Unreachable, match=f"{endpoint} is not an address"):
        connect(router, endpoint, b"w#1")


def test_an_unknown_peer_is_an_error_and_not_silence(router):
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        router.send_multipart([b"nobody", b""], zmq.NOBLOCK)


def test_a_port_in_use_is_named(dealer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            bind(dealer, f"tcp://127.0.0.1:{port}")
    assert "choose another with -p" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.7", "no-such-interface"])
def test_a_host_that_is_not_here_is_named(dealer, host):
    with pytest.raises(RequestError, match=f"host '{host}' is not an address of this machine"):
        bind(dealer, f"tcp://{host}:50052")


def test_tensors_that_would_cost_the_connection_are_refused():
    check_size(MAX_FRAME_BYTES)
    with pytest.raises(LocalProtocolError, match=f"tensor of {MAX_FRAME_BYTES + 1} bytes, at most {MAX_FRAME_BYTES}"):
        check_size(MAX_FRAME_BYTES + 1)


def test_monitors_tell_of_connections_from_both_sides(dealer, router, watch):
    at_worker, at_broker = watch(dealer), watch(router)
    endpoint = bind(dealer, "tcp://127.0.0.1:*")
    assert wait_for(at_worker, Listening)
    connect(router, endpoint, b"w#1")
    accepted = wait_for(at_worker, Accepted)
    assert wait_for(at_broker, Connected) == Connected(endpoint)
    router.disconnect(endpoint)
    assert wait_for(at_worker, Disconnected, router) == Disconnected(endpoint, accepted.fd)


def test_nobody_listening_is_told_as_a_retry(router, watch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monitor = watch(router)
    connect(router, f"tcp://127.0.0.1:{port}", b"w#1")
    assert wait_for(monitor, Retried).endpoint == f"tcp://127.0.0.1:{port}"


def test_a_peer_of_zmtp_1_is_disconnected_before_it_names_itself(router, watch):
    """A ROUTER that takes its name, such as the first bytes of HTTP, can abort the process."""
    monitor = watch(router)
    with socket.create_server(("127.0.0.1", 0)) as service:
        endpoint = f"tcp://127.0.0.1:{service.getsockname()[1]}"
        connect(router, endpoint, b"w#1")
        visitor, _ = service.accept()
        with visitor:
            visitor.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            assert wait_for(monitor, Disconnected).endpoint == endpoint
    assert not any(isinstance(event, Retried) for event in monitor.events())


def test_binding_anew_drops_every_peer_and_lets_them_come_back(dealer, router, watch):
    endpoint = bind(dealer, "tcp://127.0.0.1:*")
    router.setsockopt(zmq.RECONNECT_IVL, 100)
    monitor = watch(router)
    connect(router, endpoint, b"w#1")
    wait_for(monitor, Connected)
    rebind(dealer, endpoint)
    assert wait_for(monitor, Disconnected, dealer).endpoint == endpoint
    assert wait_for(monitor, Connected, dealer) == Connected(endpoint)
    router.send_multipart([b"w#1", b"again"])
    assert dealer.poll(int(DEADLINE_S * 1000))
    assert dealer.recv() == b"again"

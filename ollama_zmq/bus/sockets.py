"""How every socket of the bus is set up: a worker's, and the broker's.

A worker binds a DEALER; the broker has one ROUTER that connects to every worker under a routing id of its choice.

    option                       value        because
    LINGER                       0            what is unsent at the end is of no use to anyone but a worker's bye: 200
    ROUTER_MANDATORY             1            a full or unknown peer is EAGAIN or EHOSTUNREACH, not silence
    MAXMSGSIZE                   32 MB + 64 KB   a hidden state float32 [512, 16384] crosses in one frame; over it the
                                              peer disconnects and the message is lost, which ``seq`` shows
    SNDHWM, RCVHWM               256          messages, roughly; bytes are limited by the credits of the coordinator
    HANDSHAKE_IVL                3 s          who is not ZeroMQ is dropped after it
    HEARTBEAT_IVL, TIMEOUT, TTL  1, 3, 3 s    libzmq's I/O thread answers: they prove process and network, no progress
    RECONNECT_IVL                1 h          as good as never: :mod:`.dialer` probes before each connection. -1 would
                                              end one amid a message that is half read, which aborts the process
    IMMEDIATE                    never        with CONNECT_ROUTING_ID every send would be EHOSTUNREACH for ever
    IPV6                         only for an address in brackets
    ZAP_DOMAIN                   worker       asks the ZAP authenticator, :mod:`ollama_zmq.bus.security`
                                 broker       nobody is asked, but libzmq then refuses ZMTP 1 and 2, by which a stranger
                                              can abort the process (``process_routing_id_msg``)

Weights travel in chunks of at most ``CHUNK_BYTES``: a 64 MB frame over 100 Mbit/s does not arrive within a heartbeat
timeout, 1 MB frames do.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import zmq

from ollama_zmq.errors import LocalProtocolError, RequestError, Unreachable
from ollama_zmq.wire.frames import MAX_TENSORS
from ollama_zmq.wire.messages import MAX_TENSOR_BYTES

MAX_FRAME_BYTES = MAX_TENSOR_BYTES
QUEUE_MESSAGES = 256
MAX_FRAMES = 1 + 1 + MAX_TENSORS + 1  # the routing id, the first, tensors, and one too many
HANDSHAKE_MS = 3000
HEARTBEAT_MS = 1000
HEARTBEAT_TIMEOUT_MS = 3000
RECONNECT_MS = 3_600_000
REBIND_TRIES = 100  # a second in all: libzmq closes a listener in a few milliseconds, on a busy machine later
REBIND_WAIT_MS = 10
WORKER_DOMAIN, BROKER_DOMAIN = b"worker", b"broker"

_routing_ids: WeakKeyDictionary[zmq.Socket[bytes], set[bytes]] = WeakKeyDictionary()


def worker_socket(context: zmq.Context[Any], endpoint: str, *, zap: bool = False) -> zmq.Socket[bytes]:
    """Return a DEALER for *endpoint*, to be bound with :func:`bind`.

    Args:
        zap: ask the ZAP handler of *context*, which must be running, about every peer.
    """
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    _set_common(dealer)
    dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
    if zap:
        dealer.setsockopt(zmq.ZAP_DOMAIN, WORKER_DOMAIN)
    return dealer


def bind(dealer: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind *dealer* and return the endpoint, with the port that was chosen when *endpoint* has "*".

    Raises:
        RequestError: the port is in use or not permitted, or the host is not one of this machine.
    """
    try:
        dealer.bind(endpoint)
    except zmq.ZMQError as error:
        raise _bind_error(endpoint, error) from None
    return dealer.getsockopt_string(zmq.LAST_ENDPOINT)


def rebind(dealer: zmq.Socket[bytes], endpoint: str) -> None:
    """Close every connection of a bound *dealer* and listen again; libzmq has no other way to drop a peer.

    Raises:
        RequestError: somebody else took the port meanwhile.
    """
    dealer.unbind(endpoint)
    for _ in range(REBIND_TRIES - 1):
        try:
            dealer.bind(endpoint)
        except zmq.ZMQError:
            dealer.poll(REBIND_WAIT_MS, zmq.POLLERR)  # lets libzmq finish closing the listener
        else:
            return
    bind(dealer, endpoint)


def _bind_error(endpoint: str, error: zmq.ZMQError) -> RequestError:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if error.errno == errno.EADDRINUSE:
        return RequestError(
            f"port {port} on {host} is in use: is another rpc-server running? choose another with -p", endpoint=endpoint
        )
    if error.errno == errno.EACCES:
        return RequestError(f"port {port} on {host} is not permitted: choose one above 1023 with -p", endpoint=endpoint)
    if error.errno in (errno.ENODEV, errno.EADDRNOTAVAIL, errno.EINVAL):
        return RequestError(
            f"host {host.strip('[]')!r} is not an address of this machine: choose another with -H", endpoint=endpoint
        )
    return RequestError(f"cannot listen on {endpoint}: {error.strerror}", endpoint=endpoint)


def broker_socket(context: zmq.Context[Any], broker: str = "") -> zmq.Socket[bytes]:
    """Return a ROUTER that can :func:`connect` to workers. *broker* is its id, which workers see in their logs."""
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    _set_common(router)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ZAP_DOMAIN, BROKER_DOMAIN)
    if broker:
        router.setsockopt(zmq.ROUTING_ID, broker.encode())
    _routing_ids[router] = set()
    return router


def connect(router: zmq.Socket[bytes], endpoint: str, routing_id: bytes) -> None:
    """Connect *router* to a worker that it will call *routing_id*; it may send at once.

    A routing id is never used twice, not even after a disconnect: libzmq aborts the process over a duplicate.

    Raises:
        LocalProtocolError: *routing_id* was used before.
        Unreachable: *endpoint* is not an address.
    """
    used = _routing_ids[router]
    if routing_id in used:
        raise LocalProtocolError(f"routing id {routing_id!r} was used before")
    router.setsockopt(zmq.IPV6, int("[" in endpoint))
    router.setsockopt(zmq.CONNECT_ROUTING_ID, routing_id)
    used.add(routing_id)
    try:
        router.connect(endpoint)
    except zmq.ZMQError as error:
        raise Unreachable(f"{endpoint} is not an address: {error.strerror}", endpoint=endpoint) from None


def disconnect(router: zmq.Socket[bytes], endpoint: str) -> list[list[zmq.Frame]]:
    """Forget the connection to *endpoint* and return the messages of all workers that had arrived, to be handled.

    They must be read before: polling a ROUTER takes the first frame of the next message out of its pipe, and when that
    pipe is closed before the others are read, libzmq aborts the process.
    """
    arrived = read_all(router)
    with contextlib.suppress(zmq.ZMQError):  # it was not connected, or is not any more
        router.disconnect(endpoint)
    return arrived


def read_all(socket: zmq.Socket[bytes]) -> list[list[zmq.Frame]]:
    """Return the frames of every message that has arrived, not copied, of each ``MAX_FRAMES`` at most. Does not wait.

    The socket is asked whether there is one: to find out by zmq.Again costs 20 us when the caches are cold. It may say
    so and still have none, when the connection that half a message came from is gone.
    """
    arrived: list[list[zmq.Frame]] = []
    with contextlib.suppress(zmq.Again):
        while int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            arrived.append(_receive(socket))
    return arrived


def _receive(socket: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """Read one message whole and keep so many frames of it that the surplus shows."""
    parts: list[zmq.Frame] = []
    while True:
        part = socket.recv(zmq.NOBLOCK, copy=False)
        if len(parts) < MAX_FRAMES:
            parts.append(part)
        if not part.more:
            return parts


def send(socket: zmq.Socket[bytes], frames: Sequence[Any]) -> None:
    """Send one message without waiting, frames of over 64 KB without a copy: they must not change any more.

    Raises:
        zmq.ZMQError: nothing was sent; Again when the peer's queue is full.
    """
    *before, last = frames
    for frame in before:
        socket.send(frame, zmq.NOBLOCK | zmq.SNDMORE, copy=False)
    socket.send(last, zmq.NOBLOCK, copy=False)


def _set_common(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)


def check_size(nbytes: int) -> None:
    """Refuse what the other side of a TCP connection would drop together with the connection.

    Raises:
        LocalProtocolError: a tensor of so many bytes is over ``MAX_FRAME_BYTES``.
    """
    if nbytes > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"tensor of {nbytes} bytes, at most {MAX_FRAME_BYTES}", nbytes=nbytes)

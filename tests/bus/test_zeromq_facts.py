"""What libzmq does that one would not expect, and what we do about each. If a fact changes, a guard may go.

A bound DEALER deals replies to two ROUTERs in turn      test_worker_loop: a second broker is refused
A ROUTER sends to the process that took a dead one's     test_worker_loop: messages of an older epoch do nothing;
place what was queued for the dead one                   cluster/test_worker: a restarted worker says so
A duplicate CONNECT_ROUTING_ID aborts the process        test_sockets: a routing id is never used twice
IMMEDIATE with CONNECT_ROUTING_ID is EHOSTUNREACH        test_sockets: every socket has the options of the table
Over MAXMSGSIZE connection and message are lost          test_worker_loop: a lost message shows in the sequence
Without MANDATORY a full queue drops silently            test_sockets: an unknown peer is an error
A sent buffer is read later, above 64 KB                 test_worker_loop: outputs in flight
ZAP sees no routing id with the NULL mechanism           security counts connections
Heartbeats and ZAP are answered by other threads         test_worker_loop: refused while the worker is busy
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import zmq

from ollama_zmq.bus.monitor import Disconnected, Monitor
from ollama_zmq.bus.sockets import (
    MAX_FRAME_BYTES,
    QUEUE_MESSAGES,
    bind,
    broker_socket,
    connect,
    disconnect,
    worker_socket,
)
from tests.bus.peer import DEADLINE_S

WAIT_MS = int(DEADLINE_S * 1000)
ENDPOINTS = ["tcp://127.0.0.1:*", "inproc://worker"]


@pytest.fixture
def worker(context):
    """Makes bound worker sockets; all are closed after the test."""
    made = []

    def make(endpoint="tcp://127.0.0.1:*", **options):
        dealer = worker_socket(context, endpoint)
        made.append(dealer)
        for name, value in options.items():
            dealer.setsockopt(getattr(zmq, name), value)
        return dealer, bind(dealer, endpoint)

    yield make
    for dealer in made:
        dealer.close(0)


@pytest.fixture
def broker(context):
    """Makes routers; all are closed after the test."""
    made = []

    def make(**options):
        router = broker_socket(context)
        made.append(router)
        for name, value in options.items():
            router.setsockopt(getattr(zmq, name), value)
        return router

    yield make
    for router in made:
        router.close(0)


@pytest.fixture
def plain_router(context):
    """Makes routers without options, which call every worker b"w"; all are closed after the test."""
    made = []

    def make(**options):
        made.append(context.socket(zmq.ROUTER))
        for name, value in {"LINGER": 0, "CONNECT_ROUTING_ID": b"w", **options}.items():
            made[-1].setsockopt(getattr(zmq, name), value)
        return made[-1]

    yield make
    for router in made:
        router.close(0)


def receive(socket, *served):
    for _ in range(WAIT_MS // 10):
        for each in served:
            each.poll(0)
        if socket.poll(10):
            return socket.recv_multipart()
    raise AssertionError("nothing arrived")


def receive_all(socket, n, *served):
    return [receive(socket, *served) for _ in range(n)]


def test_a_bound_dealer_deals_its_replies_to_every_router(worker, broker):
    dealer, endpoint = worker()
    first, second = broker(), broker()
    for router in (first, second):
        connect(router, endpoint, b"w")
        router.send_multipart([b"w", b"hello"])
        assert receive(dealer) == [b"hello"]
    for _ in range(6):
        first.send_multipart([b"w", b"question"])
        assert receive(dealer) == [b"question"]
        dealer.send(b"answer")
    assert [len(receive_all(router, 3)) for router in (first, second)] == [3, 3]


def test_a_restarted_worker_gets_what_was_queued_for_the_one_before(worker, broker):
    dealer, endpoint = worker()
    router = broker(RECONNECT_IVL=100)
    monitor = Monitor(router)
    connect(router, endpoint, b"w#1")
    router.send_multipart([b"w#1", b"first"])
    assert receive(dealer) == [b"first"]
    dealer.close(0)
    while not any(isinstance(event, Disconnected) for event in monitor.events()):
        assert monitor.socket.poll(WAIT_MS)
    monitor.close()
    router.disable_monitor()
    router.send_multipart([b"w#1", b"for the dead"], zmq.NOBLOCK)
    second, _ = worker(endpoint)
    router.send_multipart([b"w#1", b"for the living"], zmq.NOBLOCK)
    assert receive_all(second, 2, router) == [[b"for the dead"], [b"for the living"]]


def test_after_a_disconnect_a_new_routing_id_reaches_the_worker_and_the_old_one_is_unknown(worker, broker):
    dealer, endpoint = worker()
    router = broker()
    connect(router, endpoint, b"w#1")
    router.disconnect(endpoint)
    connect(router, endpoint, b"w#2")
    router.send_multipart([b"w#2", b"fresh"])
    assert receive(dealer, router) == [b"fresh"]
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        router.send_multipart([b"w#1", b"stale"], zmq.NOBLOCK)


def test_a_duplicate_routing_id_aborts_the_process():
    code = """
import resource, zmq
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
router = zmq.Context().socket(zmq.ROUTER)
for port in (1, 2):
    router.setsockopt(zmq.CONNECT_ROUTING_ID, b"w")
    router.connect(f"tcp://127.0.0.1:{port}")
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGABRT


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_disconnect_between_poll_and_receive_aborts_the_process(endpoint):
    code = f"""
import resource, zmq
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
context = zmq.Context()
dealer, router = context.socket(zmq.DEALER), context.socket(zmq.ROUTER)
dealer.bind({endpoint!r})
router.setsockopt(zmq.CONNECT_ROUTING_ID, b"w")
router.connect(dealer.last_endpoint.decode())
router.send_multipart([b"w", b"x"])
dealer.recv()
dealer.send_multipart([b"two", b"frames"])
assert router.poll(50_000)
router.disconnect(dealer.last_endpoint.decode())
router.recv_multipart(zmq.NOBLOCK)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGABRT


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_our_disconnect_hands_over_what_had_arrived(worker, broker, endpoint):
    dealer, endpoint = worker(endpoint)
    router = broker()
    connect(router, endpoint, b"w")
    router.send_multipart([b"w", b"x"])
    assert receive(dealer) == [b"x"]
    dealer.send_multipart([b"two", b"frames"])
    assert router.poll(WAIT_MS)
    (message,) = disconnect(router, endpoint)
    assert [frame.bytes for frame in message] == [b"w", b"two", b"frames"]
    assert disconnect(router, endpoint) == []


def test_immediate_makes_every_send_unreachable(worker, broker):
    _, endpoint = worker()
    router = broker(IMMEDIATE=1)
    connect(router, endpoint, b"w")
    with pytest.raises(zmq.ZMQError, match="unreachable"):
        router.send_multipart([b"w", b"x"], zmq.NOBLOCK)


def test_a_message_over_the_limit_is_lost_and_the_next_arrives(worker, broker):
    dealer, endpoint = worker(MAXMSGSIZE=1000)
    router = broker(RECONNECT_IVL=100)
    connect(router, endpoint, b"w")
    router.send_multipart([b"w", b"before"])
    assert receive(dealer) == [b"before"]
    router.send_multipart([b"w", b"x" * 1001])
    got = b""
    for _ in range(WAIT_MS // 50):
        router.send_multipart([b"w", b"after"], zmq.NOBLOCK)
        if dealer.poll(50):
            got = dealer.recv()
            break
    assert got == b"after"


def test_a_message_of_the_limit_arrives(worker, broker):
    dealer, endpoint = worker()
    router = broker()
    connect(router, endpoint, b"w")
    router.send_multipart([b"w", bytes(MAX_FRAME_BYTES)], copy=False)
    assert len(receive(dealer, router)[0]) == MAX_FRAME_BYTES


def flood(router, n):
    for _ in range(n):
        router.send_multipart([b"w", bytes(60_000)], zmq.NOBLOCK)


def test_a_full_queue_is_an_error_and_not_silence(worker, broker):
    _, endpoint = worker()
    router = broker()
    connect(router, endpoint, b"w")
    with pytest.raises(zmq.Again):
        flood(router, 100 * QUEUE_MESSAGES)


def test_a_worker_without_a_broker_does_not_wait_to_send(worker):
    dealer, _ = worker()
    with pytest.raises(zmq.Again):
        dealer.send(b"to nobody", zmq.NOBLOCK)


@pytest.mark.parametrize(("nbytes", "shared"), [(zmq.COPY_THRESHOLD - 1, False), (zmq.COPY_THRESHOLD, True)])
def test_a_sent_buffer_is_read_later_from_pyzmqs_threshold_on(context, nbytes, shared):
    with context.socket(zmq.PAIR) as sender, context.socket(zmq.PAIR) as receiver:
        sender.bind("inproc://pair")
        receiver.connect("inproc://pair")
        array = np.zeros(nbytes, np.uint8)
        tracker = sender.send(array, copy=False, track=True)
        array[0] = 77
        frame = receiver.recv(copy=False)
        assert (frame.buffer[0] == 77) is shared
        assert tracker.done is not shared
        del frame
        tracker.wait(DEADLINE_S)


def test_zap_is_asked_before_the_peer_has_told_its_routing_id(context, worker, plain_router):
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    dealer, endpoint = worker(ZAP_DOMAIN=b"worker")
    router = plain_router(ROUTING_ID=b"a broker")
    router.connect(endpoint)
    request = receive(zap, dealer)
    zap.send_multipart([b"1.0", request[1], b"200", b"", b"", b""])
    zap.close(0)
    assert request[2:6] == [b"worker", b"127.0.0.1", b"", b"NULL"]


def test_a_message_knows_its_connection_and_what_zap_called_its_sender(context, worker, plain_router):
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    dealer, endpoint = worker(ZAP_DOMAIN=b"worker")
    router = plain_router()
    router.connect(endpoint)
    zap.send_multipart([b"1.0", receive(zap, dealer)[1], b"200", b"", b"41", b""])
    zap.close(0)
    router.send_multipart([b"w", b"x"])
    assert dealer.poll(WAIT_MS)
    frame = dealer.recv(copy=False)
    assert frame.get("User-Id") == "41"
    assert frame.get(zmq.SRCFD) > 2


def test_a_socket_is_used_by_one_thread_and_may_be_made_by_another(context):
    made = worker_socket(context, "inproc://made")
    bind(made, "inproc://made")
    got: list[bytes] = []

    def serve() -> None:
        got.append(made.recv())
        made.close(0)

    thread = threading.Thread(target=serve)
    thread.start()
    with broker_socket(context) as router:
        connect(router, "inproc://made", b"w")
        router.send_multipart([b"w", b"x"])
        thread.join(DEADLINE_S)
    assert got == [b"x"]

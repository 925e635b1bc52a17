"""Fixtures with real sockets. A test that leaves a socket, a context or a thread behind fails."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from zmq.utils.garbage import gc as pyzmq_garbage

from ollama_zmq.bus.worker_loop import WorkerLoop
from ollama_zmq.devices.base import Budget, Device
from ollama_zmq.devices.reference import ReferenceDevice
from tests.bus.peer import DEADLINE_S, Peer


def _open_sockets() -> set[zmq.Socket]:
    return {
        thing
        for thing in gc.get_objects()
        if isinstance(thing, zmq.Socket) and not thing.closed and thing.context is not pyzmq_garbage.context
    }


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail the test that leaves a socket open or a thread running."""
    threads = set(threading.enumerate())
    sockets = _open_sockets()
    yield
    left = {thread for thread in set(threading.enumerate()) - threads if thread is not pyzmq_garbage.thread}
    assert not left, f"threads left running: {left}"
    assert _open_sockets() <= sockets, "sockets left open"


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    """A context that must be free of sockets when the test is over, or terminating it would hang."""
    made: zmq.Context = zmq.Context()
    yield made
    terminator = threading.Thread(target=made.term, daemon=True)
    terminator.start()
    terminator.join(DEADLINE_S)
    assert not terminator.is_alive(), "a socket of the context is still open"


@pytest.fixture
def device() -> ReferenceDevice:
    return ReferenceDevice(Budget(64 << 20))


@pytest.fixture
def serve(context: zmq.Context) -> Iterator[Callable[..., WorkerLoop]]:
    """Starts worker loops in threads of their own; all are stopped after the test."""
    running: list[tuple[WorkerLoop, threading.Thread]] = []

    def start(
        device: Device,
        endpoint: str = "tcp://127.0.0.1:*",
        find_blob: Callable[[str], Path | None] = lambda blob: None,
        zap: bool = True,
    ) -> WorkerLoop:
        loop = WorkerLoop(context, endpoint, device, name="box:50052", find_blob=find_blob, zap=zap)
        thread = threading.Thread(target=loop.run, name="worker")
        thread.start()
        running.append((loop, thread))
        return loop

    yield start
    for loop, thread in running:
        loop.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture
def connect(context: zmq.Context) -> Iterator[Callable[..., Peer]]:
    """Makes brokers that are connected to a worker loop; all are closed after the test."""
    peers: list[Peer] = []

    def make(loop: WorkerLoop, *, broker: str = "a" * 16, epoch: int = 1) -> Peer:
        peers.append(Peer(context, loop.bound_endpoint, broker, epoch))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()

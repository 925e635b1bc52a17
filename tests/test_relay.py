"""The relay is a cable: bytes come out whole, in order, not before their time; pulled, cut or closed, it shows."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relay import Line, Relay

DEADLINE_S = 60.0
sizes = st.lists(st.integers(1, 10**6), min_size=1, max_size=20)
times = st.lists(st.floats(0, 10), min_size=20, max_size=20).map(sorted)


@given(sizes=sizes, times=times, delay_s=st.floats(0, 2), rate=st.floats(1e3, 1e9))
def test_bytes_leave_in_order_after_the_delay_and_no_faster_than_the_rate(
    sizes: list[int], times: list[float], delay_s: float, rate: float
) -> None:
    line = Line(delay_s, rate)
    entered = times[: len(sizes)]
    left = [line.leaves_at(nbytes, now) for nbytes, now in zip(sizes, entered, strict=True)]
    assert left == sorted(left)
    for i, now in enumerate(entered):
        assert left[i] >= now + sizes[i] / rate + delay_s - 1e-9
        assert left[-1] >= now + sum(sizes[i:]) / rate + delay_s - 1e-9


def test_without_a_rate_only_the_delay_counts() -> None:
    line = Line(0.5)
    assert [line.leaves_at(10**9, 1.0), line.leaves_at(1, 1.0), line.leaves_at(1, 4.0)] == [1.5, 1.5, 4.5]


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it receives."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in (accepting, *threads):
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.fixture
def relay(echo: str) -> Iterator[Callable[..., Relay]]:
    """Makes relays to the echo server; all are closed after the test."""
    made: list[Relay] = []

    def make(**settings: float) -> Relay:
        made.append(Relay(echo, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def receive(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes and (part := connection.recv(1 << 16)):
        data += part
    return data


def test_bytes_arrive_in_order_and_whole_and_so_does_the_end(relay: Callable[..., Relay]) -> None:
    sent = bytes(range(256)) * (1 << 12)  # 1 MB
    with connect(relay(delay_s=0.001).address) as client:
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        assert receive(client, len(sent)) == sent
        sender.join()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_an_answer_takes_the_delay_of_both_ways(relay: Callable[..., Relay]) -> None:
    with connect(relay(delay_s=0.004, back_delay_s=0.006).address) as client:
        begun = time.monotonic()
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        assert time.monotonic() - begun >= 0.010


def test_many_bytes_take_the_time_of_the_rate(relay: Callable[..., Relay]) -> None:
    with connect(relay(bytes_per_s=1e7, back_bytes_per_s=0).address) as client:
        begun = time.monotonic()
        client.sendall(bytes(200_000))
        assert len(receive(client, 200_000)) == 200_000
        assert time.monotonic() - begun >= 0.020


def test_nothing_passes_a_pulled_cable_and_everything_comes_later(relay: Callable[..., Relay]) -> None:
    pulled = relay()
    with connect(pulled.address) as client:
        pulled.pause()
        client.sendall(b"late")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(DEADLINE_S)
        pulled.resume()
        assert receive(client, 4) == b"late"


def test_a_cut_connection_shows_and_a_new_one_passes(relay: Callable[..., Relay]) -> None:
    cut = relay()
    with connect(cut.address) as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"
        cut.cut()
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
    with connect(cut.address) as client:
        client.sendall(b"y")
        assert receive(client, 1) == b"y"


def test_a_closed_relay_refuses(relay: Callable[..., Relay]) -> None:
    closed = relay()
    closed.close()
    with pytest.raises(ConnectionRefusedError):
        connect(closed.address)


def test_nobody_behind_it_shows(echo: str) -> None:
    nobody = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{nobody.getsockname()[1]}"
    nobody.close()
    with Relay(address) as relay, suppress(ConnectionResetError), connect(relay.address) as client:
        assert client.recv(1) == b""


def test_it_runs_as_a_process_and_ends_with_its_stdin(echo: str) -> None:
    script = str(Path(__file__).with_name("relay.py"))
    command = [sys.executable, script, "--delay-ms", "1", echo, echo]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(2):
            with connect(process.stdout.readline().strip()) as client:
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0

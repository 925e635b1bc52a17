"""A TCP relay that makes a network of the loopback: a delay and a rate per direction, a cable to pull or to cut.

    client ---> Relay.address ---> [ delay, rate ] ---> target
           <---                <--- [ delay, rate ] <---

Bytes that enter at ``now`` leave at ``max(now, free) + n / rate + delay``, ``free`` being when those before them had
passed. A thread reads and a thread writes for each direction of a connection, with at most ``QUEUED`` reads between
them: a receiver that does not read holds up the sender, as TCP does.

What the threads cost is part of the delay, so only a delay below about 0.2 ms comes out longer than asked for. Where
that or the interpreter lock matters, run it as a process of its own; it ends when its stdin does:

    python tests/relay.py --delay-ms 5 --mbit 1000 127.0.0.1:50052 127.0.0.1:50053
"""

from __future__ import annotations

import argparse
import queue
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

READ_BYTES = 64 << 10
QUEUED = 256
Chunks = queue.Queue[tuple[float, bytes]]  # when it is due, what; empty: the end

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Line:
    """One direction of a cable.

    Args:
        delay_s: from one end to the other.
        bytes_per_s: how fast bytes enter; 0 means at once.
    """

    def __init__(self, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def leaves_at(self, nbytes: int, now: float) -> float:
        """When *nbytes* that enter at *now* have come out at the other end."""
        self._free_at = max(now, self._free_at) + (nbytes / self.bytes_per_s if self.bytes_per_s else 0.0)
        return self._free_at + self.delay_s


class Relay:
    """Passes connections to ``address`` on to *target* until it is closed.

    Args:
        target: host:port.
        delay_s, bytes_per_s: of either direction; the ``back_`` ones of answers, when those differ.

    Attributes:
        address: host:port of the loopback where it listens.
    """

    def __init__(
        self,
        target: str,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float = 0.0,
        back_delay_s: float | None = None,
        back_bytes_per_s: float | None = None,
    ) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._there = (delay_s, bytes_per_s)
        self._back = (
            delay_s if back_delay_s is None else back_delay_s,
            bytes_per_s if back_bytes_per_s is None else back_bytes_per_s,
        )
        self._passing = threading.Event()
        self._passing.set()
        self._closed = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pause(self) -> None:
        """Let nothing pass, as if the cable were pulled: connections stay, and what is sent waits."""
        self._passing.clear()

    def resume(self) -> None:
        """Let everything pass again."""
        self._passing.set()

    def cut(self) -> None:
        """Reset every connection; what is under way is lost. New ones are let through."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut everything, listen no more, and wait for the threads."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.resume()
        for thread in self._threads:
            thread.join()

    def _start(self, function, *arguments) -> None:
        thread = threading.Thread(target=function, args=arguments, name="relay", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:  # nobody listens: the client finds out as it would without us
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                near.close()
                continue
            self._connect(near, far)

    def _connect(self, near: socket.socket, far: socket.socket) -> None:
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {near, far}
        if self._closed:  # meanwhile
            self.cut()
        left = threading.Semaphore(1)
        for source, sink, line in ((near, far, Line(*self._there)), (far, near, Line(*self._back))):
            chunks: Chunks = queue.Queue(QUEUED)
            self._start(_read, source, line, chunks)
            self._start(self._write, source, sink, chunks, left)

    def _write(self, source: socket.socket, sink: socket.socket, chunks: Chunks, left: threading.Semaphore) -> None:
        """Send *chunks* to *sink* when they are due, then end it; whoever of two writers ends last closes both ends."""
        due, data = chunks.get()
        try:
            while data:
                time.sleep(max(due - time.monotonic(), 0.0))
                self._passing.wait()
                sink.sendall(data)
                due, data = chunks.get()
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # gone: so is the other end then, and its reader must not wait for room
            with suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)
            while data:
                _, data = chunks.get()
        if not left.acquire(blocking=False):
            with self._lock:
                self._open -= {source, sink}
            source.close()
            sink.close()


def _read(source: socket.socket, line: Line, chunks: Chunks) -> None:
    """Put what comes from *source* into *chunks*, until its end."""
    data = b" "
    while data:
        try:
            data = source.recv(READ_BYTES)
        except OSError:
            data = b""
        chunks.put((line.leaves_at(len(data), time.monotonic()), data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way, either direction")
    parser.add_argument("--mbit", type=float, default=0.0, help="rate of either direction, Mbit/s; 0: no limit")
    given = parser.parse_args()
    for target in given.targets:
        relay = Relay(target, delay_s=given.delay_ms / 1e3, bytes_per_s=given.mbit * 1e6 / 8)
        print(relay.address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

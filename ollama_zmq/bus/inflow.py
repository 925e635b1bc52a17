"""Bounds what a peer can make libzmq keep: bytes that it has sent and that have not come out as messages.

libzmq delivers a message as a whole, its size limit is per frame, and its high-water mark counts messages; so one
message that never ends, or one handshake command, grows until memory is full, before anything of ours sees it. The
kernel, however, counts what every TCP connection has received (``TCP_INFO``, Linux), and we count what was taken out.
The difference is what libzmq and the kernel keep for that peer:

    Rule                                                                    Limit
    an unfinished handshake, or a peer that has not been trusted yet        UNTRUSTED_BYTES
    a trusted peer: messages that wait, and the one that arrives            TRUSTED_BYTES
    answers that a peer does not read                                       TRUSTED_BYTES
    connections of peers that have not been trusted yet: the oldest goes    MAX_UNTRUSTED
    growth of memory that nobody accounts for, while a message of the       UNACCOUNTED_BYTES
    peer does not end: 2 bytes of an empty frame take 64 in libzmq

Who is over a limit is cut: its connection is shut down in both directions, which frees what was kept. A thread looks
every few milliseconds while connections are open, so a limit is passed by what the network brings in that time.
Frames' own bytes are counted as libzmq writes them; heartbeats by a credit of so many bytes a second.

Where the kernel does not count, nothing is bounded here (``docs/security.md``).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from ollama_zmq.units import human_bytes

UNTRUSTED_BYTES = 1 << 20  # a greeting and a Hello take less than 1 KB, a refused header at most 256 KB
TRUSTED_BYTES = 160 << 20  # five hidden states of the largest frame, 32 MB
UNACCOUNTED_BYTES = 192 << 20  # TRUSTED_BYTES, and what Python and the kernels take meanwhile
MAX_UNTRUSTED = 128  # of UNTRUSTED_BYTES each: 128 MB at most; brokers that knock are few
CREDIT_BYTES = 4096  # greeting and handshake, which never come out as messages
CREDIT_BYTES_PER_S = 64  # a ping and a pong of libzmq take under 32 bytes, once a second
EAGER_S = 0.01  # between two looks while there is a stranger: 1 MB at 1 Gbit/s
PERIOD_S = 0.05  # and while there is none: 6 MB at 1 Gbit/s
LOG_PERIOD_S = 1.0
SHORT_FRAME = 255

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # or a peer that sends on waits for a window that never opens

_TCP_INFO = struct.Struct("@120xQQ")  # bytes acknowledged and received, since Linux 4.1

log = structlog.get_logger()


def frame_nbytes(length: int) -> int:
    """Return what a frame of *length* bytes takes on a TCP connection."""
    return length + (2 if length <= SHORT_FRAME else 9)


@dataclass(slots=True)
class Inflow:
    """What one connection has brought. Pure: counts, memory and times are given.

    Attributes:
        opened_at: when it was opened.
        trusted: whether the peer has said what only a peer of ours says.
        consumed: bytes of it that came out as messages.
        sent: bytes that were handed to libzmq for it.
        stalled_at: ``consumed`` when memory was last noted; unaccounted: memory then.
    """

    opened_at: float
    trusted: bool = False
    consumed: int = 0
    sent: int = 0
    stalled_at: int = -1
    unaccounted: int = 0

    def excess(self, received: int, unaccounted: int, now: float, acknowledged: int = 0) -> str:
        """Return why the connection must be cut; "" while it need not be.

        Args:
            received: bytes that came over it so far; acknowledged: bytes that the peer's kernel has taken.
            unaccounted: memory of this process that no budget accounts for.
        """
        kept = received - self.consumed - CREDIT_BYTES - int(CREDIT_BYTES_PER_S * (now - self.opened_at))
        limit = TRUSTED_BYTES if self.trusted else UNTRUSTED_BYTES
        if kept > limit:
            return f"{human_bytes(kept)} without the end of a message, at most {human_bytes(limit)}"
        if self.sent - acknowledged > TRUSTED_BYTES:
            return f"{human_bytes(self.sent - acknowledged)} of answers that it does not read"
        if kept < UNTRUSTED_BYTES or self.stalled_at != self.consumed:
            self.stalled_at, self.unaccounted = self.consumed, unaccounted
            return ""
        grown = unaccounted - self.unaccounted
        if grown > UNACCOUNTED_BYTES:
            return f"a message that does not end, of {human_bytes(kept)}, takes {human_bytes(grown)} of memory"
        return ""


@dataclass(slots=True)
class _Watched:
    peer: tuple[object, ...]
    inflow: Inflow
    stranger_since: float


class InflowGuard:
    """Watches connections by their file descriptors from a thread of its own, and cuts who is over a limit.

    Args:
        accounted: bytes of memory that this process has taken on purpose; called from the guard's thread.
    """

    def __init__(self, accounted: Callable[[], int]) -> None:
        self._accounted = accounted
        self._watched: dict[int, _Watched] = {}
        self._cut: dict[int, str] = {}
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._stop = threading.Event()
        self._logged_at, self._unlogged = -LOG_PERIOD_S, 0
        self._thread = threading.Thread(target=self._run, name="inflow", daemon=True)
        if sys.platform == "linux":
            self._thread.start()

    def opened(self, descriptor: int) -> None:
        """Watch the TCP connection *descriptor*, whose peer nobody trusts yet."""
        with suppress(OSError), _duplicate(descriptor) as connection:
            now = time.monotonic()
            watched = _Watched(connection.getpeername(), Inflow(now), now)
            with self._lock:
                self._watched[descriptor] = watched
                self._cut.pop(descriptor, None)
                untrusted = [each for each in self._watched.items() if not each[1].inflow.trusted]
            self._some.set()
            if len(untrusted) > MAX_UNTRUSTED:
                self._cut_off(*untrusted[0], f"more than {MAX_UNTRUSTED} connections of peers nobody knows")

    def closed(self, descriptor: int) -> str:
        """Forget a connection; return why the guard cut it, "" if it did not."""
        with self._lock:
            self._watched.pop(descriptor, None)
            return self._cut.pop(descriptor, "")

    def clear(self) -> None:
        """Forget every connection."""
        with self._lock:
            self._watched.clear()

    def trust(self, descriptor: int, trusted: bool = True) -> None:
        """Allow a peer the bytes of messages that wait; or no longer, and its time as a stranger begins."""
        if (watched := self._watched.get(descriptor)) is not None and watched.inflow.trusted is not trusted:
            watched.inflow.trusted, watched.stranger_since = trusted, time.monotonic()

    def cut(self, descriptor: int, why: str) -> None:
        """Shut a connection down, if it is watched."""
        if (watched := self._watched.get(descriptor)) is not None:
            self._cut_off(descriptor, watched, why)

    def cut_strangers(self, limit_s: float) -> None:
        """Shut down the connections of peers that have not been trusted for longer than *limit_s*."""
        now = time.monotonic()
        with self._lock:
            watched = list(self._watched.items())
        for descriptor, each in watched:
            if not each.inflow.trusted and now - each.stranger_since > limit_s:
                self._cut_off(descriptor, each, f"no Hello within {limit_s:g} s")

    def consumed(self, descriptor: int, nbytes: int) -> None:
        """Count *nbytes*, by :func:`frame_nbytes`, of messages that came out of a connection. One thread calls it."""
        if (watched := self._watched.get(descriptor)) is not None:
            watched.inflow.consumed += nbytes

    def sent(self, descriptor: int, nbytes: int) -> None:
        """Count *nbytes* of frames that were sent over a connection. One thread calls it."""
        if (watched := self._watched.get(descriptor)) is not None:
            watched.inflow.sent += nbytes

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._some.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                watched = list(self._watched.items())
                if not watched:
                    self._some.clear()
            if not watched:
                self._some.wait()
                continue
            unaccounted = _anonymous_bytes() - self._accounted()
            for descriptor, each in watched:
                self._check(descriptor, each, unaccounted)
            self._stop.wait(PERIOD_S if all(each.inflow.trusted for _, each in watched) else EAGER_S)

    def _check(self, descriptor: int, watched: _Watched, unaccounted: int) -> None:
        """Cut one connection if it is over a limit. The descriptor may be another connection's by now."""
        with suppress(OSError), _duplicate(descriptor) as connection:
            if connection.getpeername() == watched.peer:
                acknowledged, received = _counts(connection)
                why = watched.inflow.excess(received, unaccounted, time.monotonic(), acknowledged)
                if why:
                    self._cut_off(descriptor, watched, why)

    def _cut_off(self, descriptor: int, watched: _Watched, why: str) -> None:
        with self._lock:
            if self._watched.get(descriptor) is not watched:
                return
            del self._watched[descriptor]
            self._cut[descriptor] = why
        self._log_cut(watched.peer, why)
        with suppress(OSError), _duplicate(descriptor) as connection:
            if connection.getpeername() == watched.peer:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                connection.shutdown(socket.SHUT_RDWR)

    def _log_cut(self, peer: tuple[object, ...], why: str) -> None:
        """Log at most one line a second, whatever strangers do."""
        now = time.monotonic()
        if now - self._logged_at < LOG_PERIOD_S:
            self._unlogged += 1
            return
        log.info("peer.cut", peer=f"{peer[0]}:{peer[1]}", reason=why, more=self._unlogged)
        self._logged_at, self._unlogged = now, 0


def _duplicate(descriptor: int) -> socket.socket:
    """The same connection under a descriptor of ours, which nobody closes amid a look at it.

    Raises:
        OSError: it is closed already.
    """
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _counts(connection: socket.socket) -> tuple[int, int]:
    """Bytes that the other side has acknowledged, and that came from it; as good as none where nobody counts them."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    if len(info) < _TCP_INFO.size:
        return sys.maxsize, 0
    acknowledged, received = _TCP_INFO.unpack(info)
    return acknowledged, received


def _anonymous_bytes() -> int:
    """Memory of this process that is no file's: resident less shared."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGESIZE")

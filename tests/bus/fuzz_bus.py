"""Fuzzes the bus: ``python -m tests.bus.fuzz_bus decoder|worker SECONDS [SEED]``. Prints what breaks a law, and counts.

Decoder: frames are decoded, or refused by ``RemoteProtocolError``; none takes over ``LIMIT_S``; memory does not grow.
Worker: a worker behind its socket, with the CPU device, answers a ping after any sequence of hostile messages.
``tests/bus/test_fuzz.py`` runs each for a short time with a fixed seed.
"""

from __future__ import annotations

import random
import resource
import sys
import threading
import time
from typing import Any

import msgpack
import numpy as np
import zmq

from ollama_zmq.bus.sockets import broker_socket, connect, disconnect, read_all
from ollama_zmq.bus.worker_loop import WorkerLoop
from ollama_zmq.devices.base import Budget
from ollama_zmq.errors import RemoteProtocolError
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import HEADER_AT, TAGS, Envelope, decode, encode
from ollama_zmq.wire.messages import Define, Hello, Ping, Pong, Put, Release, Run, ToWorker, Welcome
from tests.bus.peer import cached_program, chunks_of, define_of, linear_program, random_weight, run_of
from tests.wire.samples import SAMPLES

LIMIT_S = 0.1
ANSWER_S = 10.0
ODD: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 1.5, float("nan"), float("inf"), "",
    "w", "\0", "\x1b[2J", "../x", "a" * 5000, b"", b"\xff" * 16, b"x" * 70_000, [], [[]], [0] * 1000,
    [[0] * 1000] * 9, {}, {"name": "w"},
    [{"name": "w", "blob": "", "offset": 0, "nbytes": 128}], [["payload", "uint8", [3]]],
    [["input", "float32", [0, 2**31 - 1]]],
]  # fmt: skip


def mangled(rng: random.Random, envelope: Envelope) -> list[bytes]:
    """The frames of *envelope* with one to three faults of several kinds."""
    frames = [bytes(frame) for frame in encode(envelope)]
    for _ in range(rng.randint(1, 3)):
        rng.choice([_odd_field, _odd_field, _flip, _cut, _more_frames, _garbage])(rng, frames)
    return frames


def _odd_field(rng: random.Random, frames: list[bytes]) -> None:
    length = int.from_bytes(frames[0][3:HEADER_AT], "little")
    try:
        fields = msgpack.unpackb(frames[0][HEADER_AT : HEADER_AT + length], strict_map_key=False)
        if not isinstance(fields, dict):
            return
        name = rng.choice([*fields, "t", "tensors", "unknown"])
        fields[name] = rng.choice([*TAGS.values()]) if name == "t" and rng.random() < 0.5 else rng.choice(ODD)
        header = msgpack.packb(fields)
    except (ValueError, TypeError, msgpack.UnpackException):  # an earlier fault has spoilt it
        return
    frames[0] = frames[0][:3] + len(header).to_bytes(4, "little") + header + frames[0][HEADER_AT + length :]


def _flip(rng: random.Random, frames: list[bytes]) -> None:
    data = bytearray(frames[0])
    for _ in range(rng.randint(1, 4)):
        if data:
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    frames[0] = bytes(data)


def _cut(rng: random.Random, frames: list[bytes]) -> None:
    frames[0] = frames[0][: rng.randint(0, len(frames[0]))]


def _more_frames(rng: random.Random, frames: list[bytes]) -> None:
    frames += [rng.randbytes(rng.choice([0, 1, 100, 70_000]))] * rng.choice([1, 2, 9])


def _garbage(rng: random.Random, frames: list[bytes]) -> None:
    frames[rng.randrange(len(frames))] = (
        b"OZ" + bytes([PROTOCOL]) * rng.randint(0, 1) + rng.randbytes(rng.randint(0, 300))
    )


def decode_one(rng: random.Random) -> str:
    """Decode one mangled message; return what is wrong, or ""."""
    frames = mangled(rng, rng.choice(SAMPLES))
    began = time.thread_time()  # on a busy machine the clock on the wall tells of others
    try:
        decode(frames)
    except RemoteProtocolError:
        pass
    except Exception as error:  # whatever it is, it breaks the law
        return f"{type(error).__name__}: {error} of {frames!r:.500}"
    took_s = time.thread_time() - began
    return f"{took_s:.3f} s for {frames!r:.500}" if took_s > LIMIT_S else ""


class HostileBroker:
    """Takes the lease, sends what *rng* makes, and asks now and then whether the worker lives."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, rng: random.Random) -> None:
        self._rng, self._endpoint = rng, endpoint
        self._router = broker_socket(context, "ab" * 8)
        self._router.setsockopt(zmq.RECONNECT_IVL, 50)
        self._epoch, self._seq, self._name = 0, 0, b""
        self.n_sent = 0

    def round(self, n: int = 30) -> str:
        """One lease with *n* hostile messages; return what is wrong, or ""."""
        if not self._greet():
            return f"no Welcome within {ANSWER_S} s"
        for _ in range(n):
            self._send(self._hostile())
        return "" if self._greet() and self._is_alive() else f"no answer after {self.n_sent} messages"

    def close(self) -> None:
        self._router.close(0)

    def _greet(self) -> bool:
        """Connect anew and say Hello until the worker welcomes us."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            if self._name:
                disconnect(self._router, self._endpoint)
            self._epoch, self._seq = self._epoch + 1, 0
            self._name = f"w#{self._epoch}".encode()
            connect(self._router, self._endpoint, self._name)
            self._send(self._frames(Hello(VERSION, PROTOCOL, "ab" * 8)))
            if self._wait_for(Welcome, 1.0):
                return True
        return False

    def _is_alive(self) -> bool:
        self._send(self._frames(Ping(77), payload=np.zeros(3, np.uint8)))
        return self._wait_for(Pong, ANSWER_S)

    def _wait_for(self, kind: type, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._router.poll(int(left_s * 1000) + 1)
            for name, *frames in read_all(self._router):
                if name.bytes == self._name and isinstance(decode([part.buffer for part in frames]).message, kind):
                    return True
        return False

    def _frames(self, message: ToWorker, **tensors: Any) -> list[bytes]:
        frames = [bytes(frame) for frame in encode(Envelope(message, tensors, self._epoch, self._seq))]
        self._seq += 1
        return frames

    def _send(self, frames: list[bytes]) -> None:
        try:
            self._router.send_multipart([self._name, *frames], zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # cut: the next lease begins anew
        self.n_sent += 1

    def _hostile(self) -> list[bytes]:
        """A message that fits and does harm, or one that is mangled; its number is the next that is expected."""
        message, tensors = self._message()
        envelope = Envelope(message, tensors, self._epoch, self._seq)
        if self._rng.random() < 0.4:
            return mangled(self._rng, envelope)
        self._seq += 1
        return [bytes(frame) for frame in encode(envelope)]

    def _message(self) -> tuple[ToWorker, dict[str, Any]]:
        rng = self._rng
        program = rng.choice([linear_program(), linear_program(layers=3, n=4), cached_program()])
        number = lambda: rng.choice([0, 1, 2, 3, 15, 16, 17, 63, 64, -1, 1 << 20, (1 << 31) - 1])  # noqa: E731
        kind = rng.randrange(5)
        if kind == 0:
            code = bytearray(program.to_bytes())
            if rng.random() < 0.5:
                code[rng.randrange(len(code))] ^= rng.randint(1, 255)
            define = define_of(program, kv_pages=rng.choice([0, 1, 4, number()]), max_tokens=rng.choice([16, number()]))
            return Define(define.program, bytes(code), define.sources, define.kv_pages, define.max_tokens, 16), {}
        if kind == 1:
            put, chunk = rng.choice(chunks_of(program, random_weight(), name=rng.choice(["w", "w0", "v"])))
            return Put(put.program, put.weight, rng.choice([put.offset, number()]), put.digest), {"chunk": chunk}
        if kind == 2:
            T = rng.choice([0, 1, 2, 16, 17])
            run = run_of(program, T, microbatch=rng.randrange(1 << 30))
            pages = tuple(tuple(number() for _ in range(rng.randint(0, 3))) for _ in range(T))
            positions = tuple(number() for _ in range(T))
            shape = rng.choice([(T, 4), (T, 5), (T,), (0, 4), (T, 4, 1)])
            dtype = rng.choice([np.float32, np.float32, np.int32, np.float16, np.uint8])
            return Run(run.program, run.microbatch, run.lengths, positions, pages, (number(),)), {
                "input": np.ones(shape, dtype)
            }
        if kind == 3:
            return Release(rng.choice([program.id, b"", b"x" * 16])), {}
        return Ping(number()), {"payload": np.zeros(rng.choice([0, 1, 1 << 20]), np.uint8)}


def fuzz_worker(rng: random.Random, seconds: float, n_rounds: int = 1 << 62) -> list[str]:
    """Attack a worker of this process with the CPU device; return what went wrong."""
    from ollama_zmq.kernels.cpu.device import CpuDevice

    context: zmq.Context[Any] = zmq.Context()
    device = CpuDevice(threads=1, budget=Budget(64 << 20))
    loop = WorkerLoop(context, "tcp://127.0.0.1:*", device, name="fuzzed", find_blob=lambda blob: None, zap=True)
    thread = threading.Thread(target=loop.run, name="worker")
    thread.start()
    broker = HostileBroker(context, loop.bound_endpoint, rng)
    wrong: list[str] = []
    deadline, n = time.monotonic() + seconds, 0
    while time.monotonic() < deadline and n < n_rounds and not wrong:
        n += 1
        if said := broker.round():
            wrong.append(said)
    broker.close()
    loop.stop()
    thread.join()
    if device.budget.used:
        wrong.append(f"{device.budget.used} bytes of the budget are not given back")
    device.close()
    context.term()
    print(f"worker: {n} leases, {broker.n_sent} messages, {len(wrong)} wrong")
    return wrong


def fuzz_decoder(rng: random.Random, seconds: float) -> list[str]:
    """Decode mangled messages; return what went wrong."""
    wrong: list[str] = []
    deadline, n = time.monotonic() + seconds, 0
    before = 0
    while time.monotonic() < deadline and len(wrong) < 10:
        n += 1
        if said := decode_one(rng):
            wrong.append(said)
        if n == 20_000:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before if before else 0
    print(f"decoder: {n} inputs, {len(wrong)} wrong, peak memory grew by {grown} KB after the first 20,000")
    return wrong


if __name__ == "__main__":
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    _, target, limit, *seed = sys.argv
    found = {"decoder": fuzz_decoder, "worker": fuzz_worker}[target](
        random.Random(int((seed or ["1"])[0])), float(limit)
    )
    print(*found, sep="\n")
    sys.exit(bool(found))

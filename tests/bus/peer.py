"""The broker's side of a connection, as plain as can be; and programs to give to a worker."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import zmq

from ollama_zmq.bus.monitor import Monitor, SocketEvent
from ollama_zmq.bus.sockets import broker_socket, connect, disconnect
from ollama_zmq.ops.builder import Builder
from ollama_zmq.ops.program import Program, WeightSpec
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope, decode, encode
from ollama_zmq.wire.messages import AnyMessage, Define, Hello, Put, Run, WeightSource

DEADLINE_S = 60.0
F32 = 0


class Peer:
    """One ROUTER connected to one worker. Numbers what it sends; every wait has a deadline."""

    def __init__(self, context: zmq.Context, endpoint: str, broker: str, epoch: int) -> None:
        self.broker, self.epoch, self.endpoint = broker, epoch, endpoint
        self.seq = 0
        self.router = broker_socket(context, broker)
        self.router.setsockopt(zmq.RECONNECT_IVL, 100)  # a broker has a dialer for that
        self.monitor = Monitor(self.router)
        self._seen: list[SocketEvent] = []
        connect(self.router, endpoint, self.routing_id)

    @property
    def routing_id(self) -> bytes:
        return f"worker#{self.epoch}".encode()

    def reconnect(self) -> None:
        """Connect again under the next epoch, as a broker does that has lost the worker."""
        disconnect(self.router, self.endpoint)
        self.epoch, self.seq = self.epoch + 1, 0
        connect(self.router, self.endpoint, self.routing_id)

    def send(self, message: AnyMessage, **tensors: Any) -> None:
        self.send_raw(encode(Envelope(message, tensors, self.epoch, self.seq)))
        self.seq += 1

    def send_raw(self, parts: list[Any]) -> None:
        self.router.send_multipart([self.routing_id, *parts], zmq.NOBLOCK, copy=False)

    def receive(self) -> Envelope:
        assert self.router.poll(int(DEADLINE_S * 1000)), "no answer"
        routing_id, *frames = self.router.recv_multipart()
        assert routing_id == self.routing_id
        return decode(frames)

    def ask(self, message: AnyMessage, **tensors: Any) -> AnyMessage:
        self.send(message, **tensors)
        return self.receive().message

    def greet(self) -> AnyMessage:
        return self.ask(Hello(VERSION, PROTOCOL, self.broker))

    def wait_for(self, kind: type) -> SocketEvent:
        """Return the next event of the connection that is a *kind*."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            while self._seen:
                event = self._seen.pop(0)
                if isinstance(event, kind):
                    return event
            self.monitor.socket.poll(100)
            self._seen += self.monitor.events()
        raise AssertionError(f"no {kind.__name__}")

    def close(self) -> None:
        if not self.router.closed:
            self.router.disable_monitor()
            self.monitor.close()
            self.router.close(0)


def linear_program(n: int = 8, k: int = 4, *, weight: str = "w", name: str = "linear", layers: int = 1) -> Program:
    """x [T, k] -> x @ w.T [T, n]; with more *layers*, square ones w0, w1, ... one after another."""
    ops = Builder(name)
    value = ops.input("x", ("T", k))
    names = [weight] if layers == 1 else [f"{weight}{i}" for i in range(layers)]
    for each in names:
        value = ops.linear(value, ops.weight(WeightSpec(each, F32, (n, k))))
    return ops.program("y", value)


def cached_program(heads: int = 1, head_dim: int = 4) -> Program:
    """x [T, D] -> attention of x over itself, with a KV cache and no weights."""
    ops = Builder("attention")
    x = ops.input("x", ("T", heads * head_dim))
    cache = ops.cache("kv.0", n_kv_heads=heads, head_dim=head_dim)
    ops.store_kv(x, x, cache, n_kv_heads=heads, head_dim=head_dim)
    return ops.program("y", ops.attention(x, cache, n_heads=heads, n_kv_heads=heads, head_dim=head_dim, scale=0.5))


def define_of(program: Program, *, blob: str = "", offset: int = 0, kv_pages: int = 0, max_tokens: int = 16) -> Define:
    """Define *program*, its float32 weights one after another in *blob* from *offset*."""
    sources = []
    for spec in program.weights:
        nbytes = 4 * int(np.prod(spec.shape))
        sources.append(WeightSource(spec.name, blob, offset, nbytes))
        offset += nbytes
    return Define(program.id, program.to_bytes(), tuple(sources), kv_pages, max_tokens, max_tokens)


def random_weight(n: int = 8, k: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


def chunks_of(program: Program, weight: np.ndarray, *, name: str = "w", size: int = 50) -> list[tuple[Put, np.ndarray]]:
    """The ``Put`` messages of a weight with their chunks, *size* bytes each."""
    data = np.frombuffer(weight.tobytes(), np.uint8)
    digest = hashlib.sha256(data).digest()
    return [
        (Put(program.id, name, offset, digest if offset + size >= len(data) else b""), data[offset : offset + size])
        for offset in range(0, len(data), size)
    ]


def run_of(program: Program, T: int, *, microbatch: int = 1, **fields: Any) -> Run:
    """Run *program* on T sequences of one token each."""
    plain = {"lengths": (1,) * T, "positions": (0,) * T, "pages": (), "rows": ()}
    return Run(program.id, microbatch, **(plain | fields))

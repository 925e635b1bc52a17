"""One envelope of every message, for tests that hold for all of them. ``golden`` holds their bytes."""

from __future__ import annotations

import numpy as np

from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import (
    Bye,
    Define,
    Defined,
    DeviceInfo,
    Failed,
    Hello,
    MatrixSpeed,
    Ping,
    Pong,
    Put,
    Ran,
    Ready,
    Refused,
    Release,
    Run,
    Stored,
    WeightSource,
    Welcome,
)

PROGRAM = bytes(range(16))
PAYLOAD = {"payload": np.array([1, 2, 3], np.uint8)}
SOURCE = WeightSource("blk.0.attn_q.weight", "sha256-" + "ab" * 32, 4096, 8192)

SAMPLES = [
    Envelope(Hello("0.1.0", 2, "00112233445566778899aabbccddeeff"), epoch=1),
    Envelope(
        Welcome(
            package="0.1.0",
            protocol=2,
            host="box",
            devices=(DeviceInfo("cpu", "a CPU, AVX2, 2 threads"),),
            memory_total=8 << 30,
            memory_budget=3 << 30,
            threads=2,
            decode_bytes_per_s=1e10,
            prefill_macs_per_s=5e10,
            matrices=(MatrixSpeed(12, 9e9, 4e10),),
            values_per_s=1e9,
            call_s=1e-6,
            id="0f1e2d3c",
        ),
        epoch=1,
    ),
    Envelope(Refused("worker box:50052 is leased to another broker", "0.1.0", 2), epoch=1),
    Envelope(Ping(5), PAYLOAD, 1, 1),
    Envelope(Pong(5), PAYLOAD, 1, 1),
    Envelope(Define(PROGRAM, b"code", (SOURCE,), 8, 512, 64), epoch=1, seq=2),
    Envelope(Defined(PROGRAM, ("blk.0.attn_q.weight",)), epoch=1, seq=2),
    Envelope(Put(PROGRAM, "blk.0.attn_q.weight", 0, bytes(32)), {"chunk": np.arange(4, dtype=np.uint8)}, 1, 3),
    Envelope(Stored(PROGRAM, 4), epoch=1, seq=3),
    Envelope(Ready(PROGRAM, 917504), epoch=1, seq=4),
    Envelope(
        Run(PROGRAM, 7, (2, 1), (0, 64), ((0,), (1, 2)), (1, 2)),
        {"input": np.arange(6, dtype=np.float32).reshape(3, 2)},
        1,
        4,
    ),
    Envelope(Ran(PROGRAM, 7, 1500, 20), {"output": np.zeros((3, 2), np.float32)}, 1, 5),
    Envelope(Failed(PROGRAM, 7, "ShapeError", "rows reach 3 of 3"), epoch=1, seq=5),
    Envelope(Release(PROGRAM), epoch=1, seq=5),
    Envelope(Bye(), epoch=1, seq=6),
]

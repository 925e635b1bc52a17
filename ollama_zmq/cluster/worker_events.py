"""Events that reach a worker's state machine, and effects that its loop carries out.

``now`` is the time of an event by the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ollama_zmq.devices.base import Array
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import AnyMessage, Define, Put, Run

NO_MICROBATCH = -1


class Received(msgspec.Struct, frozen=True):
    """A message arrived."""

    now: float
    envelope: Envelope


class Rejected(msgspec.Struct, frozen=True):
    """Frames arrived that are no message."""

    now: float
    error: OllamaZmqError


class Answered(msgspec.Struct, frozen=True):
    """Work that an effect asked for is done; *reply* goes to the broker."""

    now: float
    reply: AnyMessage
    tensors: Mapping[str, Array] = msgspec.field(default_factory=dict)


class WorkFailed(msgspec.Struct, frozen=True):
    """Work that an effect asked for cannot be done."""

    now: float
    error: OllamaZmqError
    program: bytes = b""
    microbatch: int = NO_MICROBATCH


class PeerDisconnected(msgspec.Struct, frozen=True):
    """The broker's connection is closed."""

    now: float


class Stopped(msgspec.Struct, frozen=True):
    """This worker is being stopped; nothing more will happen to it."""

    now: float


class TimePassed(msgspec.Struct, frozen=True):
    """Time passed and nothing has arrived."""

    now: float


Event = Received | Rejected | Answered | WorkFailed | PeerDisconnected | Stopped | TimePassed


class SendReply(msgspec.Struct, frozen=True):
    """Send to the broker."""

    envelope: Envelope


class SendWelcome(msgspec.Struct, frozen=True):
    """Measure the device once, then answer with ``Welcome``."""


class Verify(msgspec.Struct, frozen=True):
    """Check the program, answer ``Defined``, and ``Ready`` when all its weights are there."""

    define: Define


class StoreChunk(msgspec.Struct, frozen=True):
    """Add the chunk to its weight and answer ``Stored``."""

    put: Put
    chunk: Array


class Compute(msgspec.Struct, frozen=True):
    """Run the program and answer ``Ran``. *arrived* is when the message was read."""

    run: Run
    input: Array
    arrived: float


class Unload(msgspec.Struct, frozen=True):
    """Forget one program."""

    program: bytes


class ReleaseAll(msgspec.Struct, frozen=True):
    """Forget everything a broker has brought; its lease ended because of *reason*."""

    broker: str
    reason: str


class DropPeer(msgspec.Struct, frozen=True):
    """Close the connection of a peer that holds it without using it."""


Effect = SendReply | SendWelcome | Verify | StoreChunk | Compute | Unload | ReleaseAll | DropPeer

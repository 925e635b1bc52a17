"""Events that reach a worker's state machine, and effects that its loop carries out.

``now`` is the time of an event by the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ollama_zmq.devices.base import Array
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import AnyMessage, Define, Put, Run

NO_MICROBATCH = -1


@dataclass(frozen=True, slots=True)
class Got:
    """A message arrived."""

    now: float
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Rejected:
    """Frames arrived that are no message."""

    now: float
    error: OllamaZmqError


@dataclass(frozen=True, slots=True)
class Answered:
    """Work that an effect asked for is done; *reply* goes to the broker."""

    now: float
    reply: AnyMessage
    tensors: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broke:
    """Work that an effect asked for cannot be done."""

    now: float
    error: OllamaZmqError
    program: bytes = b""
    microbatch: int = NO_MICROBATCH


@dataclass(frozen=True, slots=True)
class Gone:
    """The broker's connection is closed."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed and nothing has arrived."""

    now: float


Event = Got | Rejected | Answered | Broke | Gone | Tick


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the broker."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Introduce:
    """Measure the device once, then answer with ``Welcome``."""


@dataclass(frozen=True, slots=True)
class Verify:
    """Check the program, answer ``Defined``, and ``Ready`` when all its weights are there."""

    define: Define


@dataclass(frozen=True, slots=True)
class Keep:
    """Add the chunk to its weight and answer ``Stored``."""

    put: Put
    chunk: Array


@dataclass(frozen=True, slots=True)
class Compute:
    """Run the program and answer ``Ran``. *arrived* is when the message was read."""

    run: Run
    input: Array
    arrived: float


@dataclass(frozen=True, slots=True)
class Forget:
    """Forget one program."""

    program: bytes


@dataclass(frozen=True, slots=True)
class ReleaseAll:
    """Forget everything a broker has brought; its lease ended because of *reason*."""

    broker: str
    reason: str


@dataclass(frozen=True, slots=True)
class DropPeer:
    """Close the connection of a peer that holds it without using it."""


Effect = Send | Introduce | Verify | Keep | Compute | Forget | ReleaseAll | DropPeer

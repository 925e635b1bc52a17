"""Workers that answer at once and without sockets: the other side of a coordinator under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ollama_zmq.cluster.coordinator import Coordinator
from ollama_zmq.cluster.events import (
    Attached,
    Connect,
    ConnectionFailed,
    ConnectionLost,
    Effect,
    Event,
    Got,
    Send,
    SendChunk,
)
from ollama_zmq.ops.program import Program
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import (
    AnyMessage,
    Define,
    Defined,
    DeviceInfo,
    Hello,
    Ping,
    Pong,
    Ran,
    Ready,
    Run,
    Stored,
    Welcome,
)

BUDGET = 1 << 30


def welcome(**changes: object) -> Welcome:
    """What a healthy worker answers to Hello."""
    values: dict[str, object] = {
        "package": VERSION,
        "protocol": PROTOCOL,
        "host": "box",
        "devices": (DeviceInfo("cpu", "a CPU"),),
        "memory_total": 2 * BUDGET,
        "memory_budget": BUDGET,
        "threads": 2,
        "decode_bytes_per_s": 1e10,
        "prefill_macs_per_s": 1e11,
    }
    return Welcome(**(values | changes))  # type: ignore[arg-type]


@dataclass
class FakeWorkers:
    """Plays every worker of *coordinator*; each round trip takes a millisecond.

    Attributes:
        lacking: addresses whose workers hold no weights and must be sent them.
        mute: addresses that never answer.
        answers: overrides, (address, message type) -> what to answer instead.
        lies: (address, type of the answer) -> what is said in its place.
        seen: every effect that was carried out or is for the loop's caller, in order.
    """

    coordinator: Coordinator
    now: float = 0.0
    lacking: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    answers: dict[tuple[str, type], Callable[[AnyMessage], list[AnyMessage]]] = field(default_factory=dict)
    lies: dict[tuple[str, type], Callable[[AnyMessage], AnyMessage]] = field(default_factory=dict)
    seen: list[Effect] = field(default_factory=list)
    sequences: dict[tuple[str, int], int] = field(default_factory=dict)
    programs: dict[bytes, Program] = field(default_factory=dict)
    owed: dict[tuple[str, bytes], int] = field(default_factory=dict)

    def carry_out(self, effects: list[Effect]) -> list[Effect]:
        """Carry out *effects* and everything that follows; return what was for the loop itself."""
        mine: list[Effect] = []
        pending = list(effects)
        while pending:
            effect = pending.pop(0)
            self.seen.append(effect)
            events = self._events(effect)
            if events is None:
                mine.append(effect)
            for event in events or []:
                self.now += 0.001
                pending += self.coordinator.handle(event, self.now)
        return mine

    def step(self, effects: list[Effect]) -> list[Effect]:
        """Carry out *effects* and return what the coordinator wants next."""
        events = [event for effect in effects for event in self._events(effect) or []]
        return [effect for event in events for effect in self.coordinator.handle(event, self.now)]

    def happen(self, event: Event) -> list[Effect]:
        """Let *event* happen and carry out what follows; return what came of it for the model."""
        return self.carry_out(self.coordinator.handle(event, self.now))

    def attached(self, address: str) -> Attached:
        """The connection to *address* as it stands now is made."""
        return Attached(address, self.coordinator.links[address].epoch)

    def failed(self, address: str, reason: str, *, final: bool = True) -> ConnectionFailed:
        """The connection to *address* as it stands now cannot be made, or must end."""
        return ConnectionFailed(address, self.coordinator.links[address].epoch, reason, final)

    def lost(self, address: str, reason: str) -> ConnectionLost:
        """The connection to *address* as it stands now has ended."""
        return ConnectionLost(address, self.coordinator.links[address].epoch, reason)

    def say(self, address: str, message: AnyMessage, **tensors: np.ndarray) -> list[Effect]:
        """Let the worker at *address* send *message* unasked; return what came of it."""
        (event,) = self._got(address, self.coordinator.links[address].epoch, [(message, tensors)])
        return self.happen(event)

    def sent(self, kind: type[AnyMessage]) -> list[tuple[str, AnyMessage]]:
        """Return (address, message) of every message of this *kind* so far."""
        return [
            (e.address, e.envelope.message)
            for e in self.seen
            if isinstance(e, Send) and isinstance(e.envelope.message, kind)
        ]

    def _events(self, effect: Effect) -> list[Event] | None:
        match effect:
            case Connect(address, epoch):
                return [] if address in self.mute else [Attached(address, epoch)]
            case Send(address, envelope):
                return self._got(address, envelope.epoch, self._answers(address, envelope))
            case SendChunk():
                return self._got(effect.address, effect.epoch, self._stored(effect))
        return None if type(effect).__name__ != "Disconnect" else []

    def _got(self, address: str, epoch: int, answers: list[tuple[AnyMessage, dict[str, np.ndarray]]]) -> list[Event]:
        events: list[Event] = []
        for honest, tensors in answers:
            lie = self.lies.get((address, type(honest)))
            message = lie(honest) if lie is not None else honest
            number = self.sequences.get((address, epoch), 0)
            self.sequences[(address, epoch)] = number + 1
            events.append(Got(address, Envelope(message, tensors, epoch=epoch, seq=number)))
        return events

    def _answers(self, address: str, envelope: Envelope) -> list[tuple[AnyMessage, dict[str, np.ndarray]]]:
        message = envelope.message
        if address in self.mute:
            return []
        if override := self.answers.get((address, type(message))):
            return [(answer, {}) for answer in override(message)]
        match message:
            case Hello():
                return [(welcome(), {})]
            case Ping(nonce):
                return [(Pong(nonce), dict(envelope.tensors))]
            case Define():
                return self._defined(address, message)
            case Run():
                return [(Ran(message.program, message.microbatch, 10, 1), {"output": self._ran(message, envelope)})]
        return []

    def _defined(self, address: str, message: Define) -> list[tuple[AnyMessage, dict[str, np.ndarray]]]:
        self.programs[message.program] = Program.from_bytes(message.code)
        if address not in self.lacking:
            return [(Defined(message.program, ()), {}), (Ready(message.program, 1000), {})]
        self.owed[(address, message.program)] = sum(source.nbytes for source in message.sources)
        return [(Defined(message.program, tuple(source.name for source in message.sources)), {})]

    def _stored(self, chunk: SendChunk) -> list[tuple[AnyMessage, dict[str, np.ndarray]]]:
        key = (chunk.address, chunk.program)
        self.owed[key] -= chunk.nbytes
        stored: list[tuple[AnyMessage, dict[str, np.ndarray]]] = [(Stored(chunk.program, chunk.nbytes), {})]
        return stored + ([(Ready(chunk.program, 1000), {})] if self.owed[key] == 0 else [])

    def _ran(self, message: Run, envelope: Envelope) -> np.ndarray:
        """Hidden states count the stages they have passed: every stage adds one."""
        many, width = self.programs[message.program].outputs[0].shape
        value = envelope.tensors["input"].reshape(len(envelope.tensors["input"]), -1)[:, :1].astype(np.float32) + 1
        if many == "R":
            value = value[list(message.rows)]
        return np.repeat(value, int(width), axis=1)

"""What a worker decides, as a state machine. Events in, effects out; no sockets, no clocks, no threads (sans-IO).

    State   Event                                Effects                        Next state
    IDLE    Received(Hello)                      SendWelcome                    LEASED to that broker and epoch
    IDLE    Received(Hello), other protocol      SendReply(Refused)             IDLE
    IDLE    Received, anything else              SendReply(Failed StageLost)    IDLE
    LEASED  Received(Hello), same epoch          SendWelcome                    LEASED
    LEASED  Received(Hello), newer epoch         ReleaseAll, SendWelcome        LEASED to the newer epoch
    LEASED  Received(Hello), other broker        SendReply(Refused)             LEASED
    LEASED  Received(Ping)                       SendReply(Pong)                LEASED
    LEASED  Received(Define)                     Verify                         LEASED
    LEASED  Received(Put)                        StoreChunk                     LEASED
    LEASED  Received(Run)                        Compute                        LEASED
    LEASED  Received(Run), taken before          none                           LEASED
    LEASED  Received(Release)                    Unload                         LEASED
    LEASED  Received(Bye)                        ReleaseAll                     IDLE
    LEASED  Received, older epoch or seq         none, it is stale              LEASED
    LEASED  Received, newer epoch without Hello  SendReply(Failed)              LEASED
    LEASED  Received, a gap in seq               SendReply(Failed), ReleaseAll  IDLE
    LEASED  Answered                             SendReply(its reply)           LEASED
    LEASED  WorkFailed                           SendReply(Failed)              LEASED
    any     Rejected (no message)                SendReply(Failed)              unchanged
    LEASED  PeerDisconnected (the connection)    ReleaseAll                     IDLE
    LEASED  silence > 10 s                       DropPeer, ReleaseAll           IDLE
    LEASED  Stopped                              SendReply(Bye), ReleaseAll     IDLE

Silence is counted from the last message or the last finished work, whichever is later: a worker that was busy for a
minute has not listened, so nobody was silent. The loop therefore hands over what has arrived before it says
``TimePassed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from ollama_zmq.cluster.worker_events import (
    NO_MICROBATCH,
    Answered,
    Compute,
    DropPeer,
    Effect,
    Event,
    PeerDisconnected,
    Received,
    Rejected,
    ReleaseAll,
    SendReply,
    SendWelcome,
    Stopped,
    StoreChunk,
    TimePassed,
    Unload,
    Verify,
    WorkFailed,
)
from ollama_zmq.devices.base import Array
from ollama_zmq.errors import OllamaZmqError, RemoteProtocolError, StageLost
from ollama_zmq.version import PROTOCOL, VERSION
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import (
    AnyMessage,
    Bye,
    Define,
    Failed,
    Hello,
    Ping,
    Pong,
    Put,
    Refused,
    Release,
    Run,
)

SILENCE_LIMIT_S = 10.0
TAKEN_KEPT = 1024


class State(Enum):
    """Whether a broker holds the lease."""

    IDLE = auto()
    LEASED = auto()


class Worker:
    """The lease of one worker.

    Attributes:
        name: "host:port" of this worker, for refusals.
        state: whether a broker holds the lease.
        broker, epoch: whose it is or was last, and which of its connections.
        heard_at: the last message or finished work.
    """

    def __init__(self, name: str, *, silence_limit_s: float = SILENCE_LIMIT_S) -> None:
        self.name = name
        self.silence_limit_s = silence_limit_s
        self.state = State.IDLE
        self.broker = ""
        self.epoch = 0
        self.heard_at = 0.0
        self._next_in = 0
        self._next_out = 0
        self._taken: dict[tuple[bytes, int], None] = {}

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event and return what the loop must do, in order."""
        match event:
            case Received(now, envelope):
                return self._on_envelope(envelope, now)
            case Rejected(error=error):
                return [self._fail(error)]
            case Answered(now, reply, tensors) if self.state is State.LEASED:
                self.heard_at = now
                return [self._send(reply, tensors)]
            case WorkFailed(now, error, program, microbatch) if self.state is State.LEASED:
                self.heard_at = now
                return [self._fail(error, program, microbatch)]
            case PeerDisconnected() if self.state is State.LEASED:
                return [self._end_lease("disconnected")]
            case Stopped() if self.state is State.LEASED:
                return [self._send(Bye()), self._end_lease("this worker was stopped")]
            case TimePassed(now) if self.state is State.LEASED and now - self.heard_at > self.silence_limit_s:
                return [DropPeer(), self._end_lease(f"silent for {self.silence_limit_s:g} s")]
        return []

    def next_deadline(self) -> float:
        """When the loop must wake up even if nothing arrives; never, while nobody holds the lease."""
        return self.heard_at + self.silence_limit_s if self.state is State.LEASED else float("inf")

    def _on_envelope(self, envelope: Envelope, now: float) -> list[Effect]:
        if isinstance(envelope.message, Hello):
            return self._on_hello(envelope, envelope.message, now)
        if self.state is State.IDLE:
            return self._refuse_without_lease(envelope)
        if envelope.epoch < self.epoch or (envelope.epoch == self.epoch and envelope.seq < self._next_in):
            return []
        if envelope.epoch > self.epoch:
            return [self._fail(RemoteProtocolError(f"epoch {envelope.epoch} has not said hello, this is {self.epoch}"))]
        self.heard_at = now
        if envelope.seq > self._next_in:
            return self._on_gap(envelope.seq)
        self._next_in += 1
        return self._on(envelope.message, envelope, now)

    def _on_hello(self, envelope: Envelope, hello: Hello, now: float) -> list[Effect]:
        leased = self.state is State.LEASED
        if leased and hello.broker == self.broker and envelope.epoch < self.epoch:
            return []
        if hello.protocol != PROTOCOL:
            return [self._refuse(envelope, self._other_version(hello))]
        if leased and hello.broker != self.broker:
            return [self._refuse(envelope, f"worker {self.name} is in use by another server")]
        effects: list[Effect] = []
        if leased and envelope.epoch > self.epoch:
            effects.append(self._end_lease("connected again"))
        if not leased or effects:
            self.state, self.broker, self.epoch = State.LEASED, hello.broker, envelope.epoch
            self._next_out = 0
            self._taken.clear()
        self.heard_at, self._next_in = now, envelope.seq + 1
        return [*effects, SendWelcome()]

    def _other_version(self, hello: Hello) -> str:
        return (
            f"worker {self.name} runs ollama-zmq {VERSION} (protocol {PROTOCOL}), this broker {hello.package} "
            f"(protocol {hello.protocol}): install the same version on both"
        )

    def _refuse(self, envelope: Envelope, reason: str) -> SendReply:
        return SendReply(Envelope(Refused(reason, VERSION, PROTOCOL), epoch=envelope.epoch))

    def _refuse_without_lease(self, envelope: Envelope) -> list[Effect]:
        """Tell a broker that believes it still holds the lease, or speaks to the process before this one."""
        message = envelope.message
        if isinstance(message, Bye):
            return []
        if envelope.epoch != self.epoch:
            self.epoch, self._next_out = envelope.epoch, 0
        program = message.program if isinstance(message, Define | Put | Run | Release) else b""
        microbatch = message.microbatch if isinstance(message, Run) else NO_MICROBATCH
        gone = StageLost(f"worker {self.name} has no lease of this broker: it was restarted or the lease ended")
        return [self._fail(gone, program, microbatch)]

    def _on_gap(self, seq: int) -> list[Effect]:
        lost = RemoteProtocolError(f"message {self._next_in} of epoch {self.epoch} did not arrive, {seq} did")
        return [self._fail(lost), self._end_lease("a message was lost")]

    def _on(self, message: AnyMessage, envelope: Envelope, now: float) -> list[Effect]:
        """Advance by one message of the lease's own epoch; what only a worker sends is refused."""
        match message:
            case Run():
                return self._on_run(message, envelope, now)
            case Ping(nonce):
                return [self._send(Pong(nonce), envelope.tensors)]
            case Define():
                return [Verify(message)]
            case Put():
                return [StoreChunk(message, envelope.tensors["chunk"])]
            case Release(program):
                return [Unload(program)]
            case Bye():
                return [self._end_lease("said bye")]
        tag = message.__struct_config__.tag
        return [self._fail(RemoteProtocolError(f"message {tag!r} is for a broker, this is a worker"))]

    def _on_run(self, message: Run, envelope: Envelope, now: float) -> list[Effect]:
        key = (message.program, message.microbatch)
        if key in self._taken:
            return []
        self._taken[key] = None
        if len(self._taken) > TAKEN_KEPT:
            del self._taken[next(iter(self._taken))]
        return [Compute(message, envelope.tensors["input"], now)]

    def _end_lease(self, reason: str) -> ReleaseAll:
        self.state = State.IDLE
        self._taken.clear()
        return ReleaseAll(self.broker, reason)

    def _fail(self, error: OllamaZmqError, program: bytes = b"", microbatch: int = NO_MICROBATCH) -> SendReply:
        return self._send(Failed(program, microbatch, type(error).__name__, str(error)))

    def _send(self, message: AnyMessage, tensors: Mapping[str, Array] | None = None) -> SendReply:
        seq = self._next_out
        self._next_out += 1
        return SendReply(Envelope(message, tensors or {}, self.epoch, seq))

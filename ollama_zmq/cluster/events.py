"""What happens to the coordinator and what it wants done. Its loop translates both; nothing here touches a socket."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from ollama_zmq.cluster.state import StageState
from ollama_zmq.engine.pacing import StageCost, StageTime
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import WeightSource


class Attached(msgspec.Struct, frozen=True):
    """The address speaks ZMTP and let us in; messages will arrive."""

    address: str
    epoch: int


class ConnectionFailed(msgspec.Struct, frozen=True):
    """No connection came about, or it must end; ``reason`` for a person, ``final`` when trying again is useless."""

    address: str
    epoch: int
    reason: str
    final: bool = True


class ConnectionLost(msgspec.Struct, frozen=True):
    """A TCP connection ended. One that never got through its handshake is told of by ``ConnectionFailed`` as well."""

    address: str
    epoch: int
    reason: str


class Got(msgspec.Struct, frozen=True):
    """A message arrived."""

    address: str
    envelope: Envelope

    @property
    def epoch(self) -> int:
        """Of the connection that it came over."""
        return self.envelope.epoch


class Unsendable(msgspec.Struct, frozen=True):
    """A message cannot be sent whatever the connection: an empty ping went in its place, so no number is missing.

    Attributes:
        program, microbatch: what it was about; -1 for no microbatch.
    """

    address: str
    epoch: int
    program: bytes
    microbatch: int
    error: OllamaZmqError


class Tick(msgspec.Struct, frozen=True):
    """Time passed."""


LinkEvent = Attached | ConnectionFailed | ConnectionLost | Got | Unsendable
Event = LinkEvent | Tick


class Connect(msgspec.Struct, frozen=True):
    """Connect to a worker under a routing id that was never used: ``address#epoch``."""

    address: str
    epoch: int


class Disconnect(msgspec.Struct, frozen=True):
    """Forget the connection and everything queued on it."""

    address: str


class Send(msgspec.Struct, frozen=True):
    """Send a message to a worker."""

    address: str
    envelope: Envelope


class SendChunk(msgspec.Struct, frozen=True):
    """Read a chunk of a weight from the model file and ``Put`` it; with its digest when it is the last."""

    address: str
    epoch: int
    model: int
    program: bytes
    source: WeightSource
    offset: int
    nbytes: int


class Replaced(msgspec.Struct, frozen=True):
    """The plan of the model that takes this one's place stands: this one is gone from every worker."""

    model: int


class ModelLoaded(msgspec.Struct, frozen=True):
    """The model is ready: a real token has passed through every stage.

    Attributes:
        held: worker address -> bytes it uses for this model.
        missing: why workers that were named have no part in it.
    """

    model: int
    stages: tuple[StageState, ...]
    held: dict[str, int]
    kv_pages: int
    costs: tuple[StageCost, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether one program, on the local device, holds all of the model."""
        return len(self.stages) == 1


class LoadFailed(msgspec.Struct, frozen=True):
    """The model could not be loaded; nothing of it is left anywhere. One that it was to replace stays."""

    model: int
    error: OllamaZmqError


class Joined(msgspec.Struct, frozen=True):
    """Every worker that was asked to join is ready or has said why not."""

    addresses: tuple[str, ...]


class Computed(msgspec.Struct, frozen=True):
    """A microbatch went through all stages; ``times`` is what each took."""

    model: int
    microbatch: int
    logits: npt.NDArray[np.float32]
    times: tuple[StageTime, ...] = ()


class StepFailed(msgspec.Struct, frozen=True):
    """A microbatch could not be computed; the stages stand and other microbatches go on."""

    model: int
    microbatch: int
    error: OllamaZmqError


class ModelLost(msgspec.Struct, frozen=True):
    """A stage is gone, and the loaded model with it."""

    model: int
    error: OllamaZmqError


class StartedOver(msgspec.Struct, frozen=True):
    """After a fault of its own the loop has let go of every model: whoever waits for workers is told as well."""

    error: OllamaZmqError


Effect = (
    Connect
    | Disconnect
    | Send
    | SendChunk
    | Replaced
    | ModelLoaded
    | LoadFailed
    | Joined
    | Computed
    | StepFailed
    | ModelLost
    | StartedOver
)

"""What happens to the coordinator and what it wants done. Its loop translates both; nothing here touches a socket."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ollama_zmq.cluster.state import StageState
from ollama_zmq.engine.pacing import StageCost, StageTime
from ollama_zmq.errors import OllamaZmqError
from ollama_zmq.wire.frames import Envelope
from ollama_zmq.wire.messages import WeightSource


@dataclass(frozen=True, slots=True)
class Attached:
    """The address speaks ZMTP and let us in; messages will arrive."""

    address: str


@dataclass(frozen=True, slots=True)
class Detached:
    """No connection came about, or it must end; ``reason`` for a person, ``final`` when trying again is useless."""

    address: str
    reason: str
    final: bool = True


@dataclass(frozen=True, slots=True)
class Broke:
    """A TCP connection ended. One that never got through its handshake is told of by ``Detached`` as well."""

    address: str
    reason: str


@dataclass(frozen=True, slots=True)
class Got:
    """A message arrived."""

    address: str
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Attached | Detached | Broke | Got | Tick


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect to a worker under a routing id that was never used: ``address#epoch``."""

    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Forget the connection and everything queued on it."""

    address: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a worker."""

    address: str
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Read a chunk of a weight from the model file and ``Put`` it; with its digest when it is the last."""

    address: str
    epoch: int
    model: int
    program: bytes
    source: WeightSource
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Replaced:
    """The plan of the model that takes this one's place stands: this one is gone from every worker."""

    model: int


@dataclass(frozen=True, slots=True)
class Progressed:
    """So many of the weight bytes that must be sent have arrived."""

    model: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model is ready: a real token has passed through every stage.

    Attributes:
        held: worker address -> bytes it uses for this model.
    """

    model: int
    stages: tuple[StageState, ...]
    held: dict[str, int]
    kv_pages: int
    costs: tuple[StageCost, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether one program, on the local device, holds all of the model."""
        return len(self.stages) == 1


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model could not be loaded; nothing of it is left anywhere. One that it was to replace stays."""

    model: int
    error: OllamaZmqError


@dataclass(frozen=True, slots=True)
class Joined:
    """Every worker that was asked to join is ready or has said why not."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Computed:
    """A microbatch went through all stages; ``times`` is what each took."""

    model: int
    microbatch: int
    logits: npt.NDArray[np.float32] = field(repr=False)
    times: tuple[StageTime, ...] = ()


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A microbatch could not be computed; the stages stand and other microbatches go on."""

    model: int
    microbatch: int
    error: OllamaZmqError


@dataclass(frozen=True, slots=True)
class ModelLost:
    """A stage is gone, and the loaded model with it."""

    model: int
    error: OllamaZmqError


Effect = (
    Connect
    | Disconnect
    | Send
    | SendChunk
    | Replaced
    | Progressed
    | Loaded
    | LoadFailed
    | Joined
    | Computed
    | StepFailed
    | ModelLost
)

"""What is asked to be loaded, what came of it, and the order to the coordinator between the two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ollama_zmq.cluster.placement import Policy
from ollama_zmq.cluster.stages import NO_MODEL, LoadOrder, Missing
from ollama_zmq.errors import ModelFileError
from ollama_zmq.models.network import Network
from ollama_zmq.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load and how.

    Attributes:
        blob: "sha256-<hex>" when the file is a blob of a store; workers that hold the blob need not be sent its bytes.
        num_ctx: slots of one sequence; at most the context the model was trained for is used.
        num_batch: the most tokens of one pass.
        num_parallel: sequences at once, with room for a whole context each; 0 for as many as the KV pages hold.
        num_thread: the most threads of the local device; 0 for all it has. Workers have threads of their own.
        kv_type: what keys and values are kept as, one of ``ops.program.KV_TYPES``.
        max_in_flight: microbatches in the stages at once; 0 leaves it to the cost model.
        missing: what to do when one of the workers is not there.
        foreign: those of ``rpc_servers`` that the operator of the server did not name.
        speculate: guess tokens that were said before where that pays.
    """

    name: str
    path: Path
    num_ctx: int
    blob: str = ""
    rpc_servers: tuple[str, ...] = ()
    num_batch: int = 512
    num_parallel: int = 1
    num_thread: int = 0
    max_in_flight: int = 0
    speculate: bool = True
    policy: Policy = Policy.THROUGHPUT
    kv_type: str = "f16"
    missing: Missing = Missing.USE_REST
    foreign: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers.

    Attributes:
        number: which load it was; never used twice by one broker.
        tokenizer: None when the file has none; token ids still work.
        contexts: how many whole contexts its KV pages hold, at least 1.
        size: bytes in use on all devices for it; size_remote: those of them on workers.
    """

    number: int
    request: LoadRequest
    network: Network
    tokenizer: Tokenizer | None
    num_ctx: int
    contexts: int
    size: int
    size_remote: int
    load_s: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """The number of a model to be loaded, and those of models that may go for it."""

    model: int
    replaces: int
    idle: tuple[int, ...]
    busy: tuple[int, ...]

    @classmethod
    def of(
        cls,
        model: int,
        replaces: LoadedModel | None,
        idle: Sequence[LoadedModel] = (),
        busy: Sequence[LoadedModel] = (),
    ) -> Numbers:
        """Those of the models that a load names."""
        return cls(
            model,
            replaces.number if replaces is not None else NO_MODEL,
            tuple(other.number for other in idle),
            tuple(other.number for other in busy),
        )


def order_of(wanted: LoadRequest, network: Network, numbers: Numbers) -> LoadOrder:
    """The coordinator's order for *wanted*, whose file is open as *network*."""
    return LoadOrder(
        model=numbers.model,
        name=wanted.name,
        network=network,
        blob=wanted.blob or _file_identity(wanted.path),
        addresses=wanted.rpc_servers,
        num_ctx=min(wanted.num_ctx, network.context_length),
        num_parallel=wanted.num_parallel,
        max_tokens=wanted.num_batch,
        policy=wanted.policy,
        replaces=numbers.replaces,
        idle=numbers.idle,
        busy=numbers.busy,
        num_thread=wanted.num_thread,
        missing=wanted.missing,
        foreign=wanted.foreign,
    )


def _file_identity(path: Path) -> str:
    """An identity for a file outside any store: no other machine has it, so its bytes are sent.

    Raises:
        ModelFileError: it is not there any more.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from None
    return "file-" + hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()

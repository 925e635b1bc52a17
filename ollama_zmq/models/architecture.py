"""What an architecture promises: a model that is read from a file's header and writes its layers as ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value
from ollama_zmq.ops.state import NO_WINDOW


@dataclass(frozen=True, slots=True)
class PagedKv:
    """Keys and values of a layer by position: *n_kv_heads* keys of *head_dim*, values of *value_dim* numbers.

    Attributes:
        window: the last positions that any op of the model reads, the token's own among them.
    """

    n_kv_heads: int
    head_dim: int
    value_dim: int
    window: int = NO_WINDOW


@dataclass(frozen=True, slots=True)
class SlotState:
    """Float32 numbers of *shape* for each sequence, whatever its length. They do not rewind."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OfLayer:
    """The state number *n* of an earlier *layer*, which this one only reads. No stage is cut between the two."""

    layer: int
    n: int = 0


State = PagedKv | SlotState | OfLayer


@dataclass(frozen=True, slots=True)
class Given:
    """What a model is given besides the hidden state. A weight is part of a program once it was asked for.

    Attributes:
        globals: the tensors outside the layers by their name without ``.weight``; absent ones are not there.
            ``output`` is there also where the file has the embedding in its place.
        positions: int32 [T].
        inputs: further rows of a step by their name, looked up by token ids.
        weights: the layer's tensors by their name without ``blk.<i>.`` and ``.weight``; absent ones are not there.
        states: what ``Model.states`` asked for, in that order.
    """

    globals: Mapping[str, Value]
    positions: Value
    inputs: Mapping[str, Value]
    weights: Mapping[str, Value]
    states: tuple[Value, ...]


class Model(Protocol):
    """The ops of an architecture. Made from a file's header; writes one layer at a time."""

    @property
    def sizes(self) -> Sizes:
        """What every model has: layers, heads, the width of the hidden state."""

    @property
    def globals(self) -> Mapping[str, bool]:
        """Name outside the layers, except embedding and head -> whether every file must have it."""

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        """Name within layer *i* -> whether every file must have it."""

    def states(self, i: int) -> tuple[State, ...]:
        """What layer *i* keeps of a sequence from step to step."""

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        """Rows of the embedding [T, D] -> hidden state [T, D] before layer 0; the first stage begins with it."""

    def layer(self, ops: Ops, i: int, hidden_state: Value, given: Given) -> Value:
        """Hidden state [T, D] -> hidden state [T, D] after layer *i*."""

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        """Hidden state [R, D] after the last layer -> logits [R, V]."""

"""What an architecture promises: a model that is read from a file's header and writes its layers as ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class LayerValues:
    """What one layer of a model is given besides the hidden state.

    Attributes:
        weights: the layer's tensors by their name without ``blk.<i>.`` and ``.weight``; absent ones are not there.
        cache: its keys and values.
        positions: int32 [T].
        rope_factors: frequency factors, where the file has them.
    """

    weights: Mapping[str, Value]
    cache: Value
    positions: Value
    rope_factors: Value | None


class Model(Protocol):
    """The ops of an architecture. Made from a file's header; writes one layer at a time."""

    n_layers: int
    hidden_size: int
    n_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float

    @property
    def layer_weights(self) -> Mapping[str, bool]:
        """Name within a layer -> whether every file must have it."""

    def layer(self, ops: Ops, i: int, hidden_state: Value, given: LayerValues) -> Value:
        """Hidden state [T, D] -> hidden state [T, D] after layer *i*."""

    def enter(self, ops: Ops, hidden_state: Value) -> Value:
        """Rows of the embedding [T, D] -> hidden state [T, D] before layer 0; the first stage begins with it."""

    def head(self, ops: Ops, hidden_state: Value, norm: Value, output: Value) -> Value:
        """Hidden state [R, D] -> logits [R, V]."""


class Architecture(Protocol):
    """One supported value of ``general.architecture``."""

    def from_metadata(self, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Model:
        """Read the header's keys. Raises ModelFileError naming a missing or impossible one."""

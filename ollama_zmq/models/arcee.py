"""AFM 4.5B of Arcee: llama's layer with a squared ReLU without a gate.

Source: Arcee AI 2025, the model's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    NORMS,
    UNGATED,
    grouped_attention,
    linear,
    paged_kv,
    plain_feed_forward,
    projections,
    rms_head,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Arcee:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "rope_freqs": False}

    @classmethod
    def of(cls, keys: Keys) -> Arcee:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | UNGATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, plain_feed_forward(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w, "relu2"))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"arcee": Arcee.of}

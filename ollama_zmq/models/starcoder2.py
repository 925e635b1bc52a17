"""StarCoder 2: layer norms and biases everywhere, GELU without a gate.

Source: Lozhkov et al. 2024, "StarCoder 2 and The Stack v2".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    LAYER_NORMS,
    UNGATED,
    grouped_attention,
    layer_norm,
    layer_norm_head,
    linear,
    paged_kv,
    plain_feed_forward,
    projections,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class StarCoder2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "output_norm.bias": True}

    @classmethod
    def of(cls, keys: Keys) -> StarCoder2:
        sizes = Sizes.of(keys, norm="layer")
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return LAYER_NORMS | ATTENTION | UNGATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, layer_norm(ops, h, w, "attn_norm", eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, plain_feed_forward(ops, layer_norm(ops, h, w, "ffn_norm", eps), w, "gelu_tanh"))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return layer_norm_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"starcoder2": StarCoder2.of}

"""Command R and R+: attention and feed-forward side by side behind one layer norm, logits by a scale; the head is tied.

Source: Cohere 2024, the model's code. R+ has a norm of each query and key head by weights of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    GATED,
    feed_forward,
    grouped_attention,
    layer_norm,
    layer_norm_head,
    linear,
    paged_kv,
    projections,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class CommandR:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    logit_scale: float
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> CommandR:
        sizes = Sizes.of(keys, norm="layer")
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved"), keys.number("logit_scale"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return {"attn_norm": True, "attn_q_norm": False, "attn_k_norm": False} | ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        x = layer_norm(ops, h, w, "attn_norm", eps)
        q, k, v = projections(ops, x, w)
        if "attn_q_norm" in w:
            q = ops.layer_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
            k = ops.layer_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output")
        return ops.add(ops.add(h, a), feed_forward(ops, x, w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.scale(layer_norm_head(ops, hidden_state, given, self.sizes.norm_eps), by=self.logit_scale)


ARCHITECTURES = {"command-r": CommandR.of}

"""StableLM 2: layer norms with biases, part of each head turned by position; some have norms of single heads.

Source: Bellagente et al. 2024, "Stable LM 2 1.6B Technical Report". Where a file has no second norm (12B), attention
and feed-forward stand side by side behind the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import ATTENTION, GATED, feed_forward, grouped_attention, linear, paged_kv, projections
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class StableLm:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "output_norm.bias": True}

    @classmethod
    def of(cls, keys: Keys) -> StableLm:
        sizes = Sizes.of(keys, norm="layer")
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        norms = {"attn_norm": True, "attn_norm.bias": True, "ffn_norm": False, "ffn_norm.bias": False}
        return norms | {"attn_q_norm": False, "attn_k_norm": False} | ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        x = ops.layer_norm(h, w["attn_norm"], w["attn_norm.bias"], eps=eps)
        q, k, v = projections(ops, x, w)
        if "attn_q_norm" in w:
            q = ops.layer_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
            k = ops.layer_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output")
        if "ffn_norm" not in w:
            return ops.add(ops.add(h, a), feed_forward(ops, x, w))
        h = ops.add(h, a)
        x = ops.layer_norm(h, w["ffn_norm"], w["ffn_norm.bias"], eps=eps)
        return ops.add(h, feed_forward(ops, x, w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        weights = given.globals
        x = ops.layer_norm(hidden_state, weights["output_norm"], weights["output_norm.bias"], eps=self.sizes.norm_eps)
        return ops.linear(x, weights["output"])


ARCHITECTURES = {"stablelm": StableLm.of}

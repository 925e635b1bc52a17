"""GLM 4.5 to 4.7, Solar Open: experts with sigmoid scores, one that every token goes through, dense first layers.

Source: GLM-4.5 Team 2025, "GLM-4.5: Agentic, Reasoning, and Coding (ARC) Foundation Models". Some have a norm of each
query and key head. A bias weighs in the choice of experts and not in their shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import CHOICE_BIAS, EXPERTS, SHARED, Routing, experts, shared_expert
from ollama_zmq.models.parts import (
    ATTENTION,
    GATED,
    feed_forward,
    grouped_attention,
    linear,
    paged_kv,
    projections,
    rms_head,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Glm4Moe:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    n_dense: int  # layers at the beginning without experts
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Glm4Moe:
        sizes = Sizes.of(keys)
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="halves")
        return cls(
            sizes, rope, Routing.of(keys, scores="sigmoid"), keys.integer("leading_dense_block_count", 0, least=0)
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        norms = {"attn_norm": True, "post_attention_norm": True, "attn_q_norm": False, "attn_k_norm": False}
        return norms | ATTENTION | (GATED if i < self.n_dense else EXPERTS | CHOICE_BIAS | SHARED)

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        if "attn_q_norm" in w:
            q = ops.rms_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
            k = ops.rms_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        x = ops.rms_norm(h, w["post_attention_norm"], eps=eps)
        if i < self.n_dense:
            return ops.add(h, feed_forward(ops, x, w))
        return ops.add(h, ops.add(experts(ops, x, w, self.routing), shared_expert(ops, x, w)))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"glm4moe": Glm4Moe.of}

"""dots.llm1: norms of each query and key head, experts with sigmoid scores, one that every token goes through.

Source: rednote-hilab 2025, "dots.llm1 Technical Report". The first layers have no experts.
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
    HEAD_NORMS,
    NORMS,
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
class Dots1:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    n_dense: int  # layers at the beginning without experts
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Dots1:
        sizes = Sizes.of(keys)
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="halves")
        n_dense = keys.integer("leading_dense_block_count", 0, least=0)
        return cls(sizes, rope, Routing.of(keys, scores="sigmoid"), n_dense)

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | HEAD_NORMS | (GATED if i < self.n_dense else EXPERTS | CHOICE_BIAS | SHARED)

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q = ops.rms_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
        k = ops.rms_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        if i < self.n_dense:
            return ops.add(h, feed_forward(ops, x, w))
        return ops.add(h, ops.add(experts(ops, x, w, self.routing), shared_expert(ops, x, w)))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"dots1": Dots1.of}

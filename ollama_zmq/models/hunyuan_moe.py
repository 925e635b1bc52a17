"""Hunyuan with experts (A13B): Hunyuan's attention, experts, and one that every token goes through.

Source: Tencent Hunyuan Team 2025, "Hunyuan-A13B Technical Report".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import EXPERTS, SHARED, Routing, experts, shared_expert
from ollama_zmq.models.parts import (
    ATTENTION,
    HEAD_NORMS,
    NORMS,
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
class HunyuanMoe:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> HunyuanMoe:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"), Routing.of(keys))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | HEAD_NORMS | EXPERTS | SHARED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        q = ops.rms_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
        k = ops.rms_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        return ops.add(h, ops.add(experts(ops, x, w, self.routing), shared_expert(ops, x, w)))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"hunyuan-moe": HunyuanMoe.of}

"""MiniMax-M2: norms over all queries and all keys, part of each head turned by position, experts with sigmoid scores.

Source: MiniMax 2025, the model's code. A bias weighs in the choice of experts and not in their shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import CHOICE_BIAS, EXPERTS, Routing, experts
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
class MiniMaxM2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> MiniMaxM2:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"), Routing.of(keys, scores="sigmoid"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | HEAD_NORMS | EXPERTS | CHOICE_BIAS

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = ops.rms_norm(q, w["attn_q_norm"], eps=eps), ops.rms_norm(k, w["attn_k_norm"], eps=eps)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, experts(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w, self.routing))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"minimax-m2": MiniMaxM2.of}

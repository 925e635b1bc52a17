"""Qwen 1.5 and 2 with experts (A2.7B, 57B-A14B): Qwen 2's attention, experts, and one that every token goes through.

Source: Yang et al. 2024, "Qwen2 Technical Report". Shares are not divided by their sum; the shared expert counts by a
sigmoid of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import EXPERTS, SHARED, Routing, experts, shared_expert
from ollama_zmq.models.parts import ATTENTION, NORMS, grouped_attention, linear, paged_kv, projections, rms_head
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Qwen2Moe:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Qwen2Moe:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"), Routing.of(keys, normalize=False))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | EXPERTS | SHARED | {"ffn_gate_inp_shexp": True}

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        gate = ops.linear(x, w["ffn_gate_inp_shexp"])  # T 1
        shared = ops.gated(gate, shared_expert(ops, x, w), function="sigmoid")
        return ops.add(h, ops.add(experts(ops, x, w, self.routing), shared))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"qwen2moe": Qwen2Moe.of}

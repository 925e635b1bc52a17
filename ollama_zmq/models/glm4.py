"""GLM 4 (9B and 32B of 2025): norms before and behind attention and feed-forward, half of each head turned by position.

Source: Team GLM 2024, "ChatGLM: A Family of Large Language Models from GLM-130B to GLM-4 All Tools", and the model's
code. Gate and up are stored as one matrix, which is taken apart at the door.
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
    NORMS,
    NORMS_AFTER,
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
class Glm4:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Glm4:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | NORMS_AFTER | ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output")
        h = ops.add(h, ops.rms_norm(a, w["post_attention_norm"], eps=eps))
        f = feed_forward(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w)
        return ops.add(h, ops.rms_norm(f, w["post_ffw_norm"], eps=eps))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"glm4": Glm4.of}

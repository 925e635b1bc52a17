"""OLMo 2 and 3: norms behind attention and feed-forward in place of before them, and over all queries and all keys.

Source: OLMo Team 2024, "2 OLMo 2 Furious". OLMo 3 has a window in three of four layers; a context is stretched in the
others only.
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
    HEAD_NORMS,
    NORMS_AFTER,
    feed_forward,
    grouped_attention,
    linear,
    paged_kv,
    projections,
    rms_head,
    windows,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Olmo2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    windowed_rope: Rope
    windows: tuple[int | None, ...]
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Olmo2:
        sizes = Sizes.of(keys)
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="halves")
        has_windows = keys.has("attention.sliding_window")
        return cls(
            sizes,
            rope,
            Rope(rope.head_dim, rope.rotary_dim, rope.theta, rope.pairing),
            windows(keys, period=4) if has_windows else (None,) * sizes.n_layers,
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS_AFTER | ATTENTION | HEAD_NORMS | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, h, w)
        q, k = ops.rms_norm(q, w["attn_q_norm"], eps=eps), ops.rms_norm(k, w["attn_k_norm"], eps=eps)
        rope = self.windowed_rope if self.windows[i] else self.rope
        q, k = rope(ops, q, given, heads.n_heads), rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads, window=self.windows[i]), w, "attn_output")
        h = ops.add(h, ops.rms_norm(a, w["post_attention_norm"], eps=eps))
        return ops.add(h, ops.rms_norm(feed_forward(ops, h, w), w["post_ffw_norm"], eps=eps))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"olmo2": Olmo2.of}

"""EXAONE 4: norms behind attention and feed-forward, and of each query and key head; a window in three of four layers.

Source: LG AI Research 2025, "EXAONE 4.0". Where there are windows, layers without one are not turned by position. A
model without the key for a window has none (llama.cpp: at 64 layers 4096).
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
class Exaone4:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    windows: tuple[int | None, ...]
    has_windows: bool
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "rope_freqs": False}

    @classmethod
    def of(cls, keys: Keys) -> Exaone4:
        sizes = Sizes.of(keys)
        has_windows = keys.has("attention.sliding_window") or sizes.n_layers == 64
        return cls(
            sizes,
            Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"),
            windows(keys, period=4, window=4096) if has_windows else (None,) * sizes.n_layers,
            has_windows,
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
        q = ops.rms_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
        k = ops.rms_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        if self.windows[i] or not self.has_windows:
            q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads, window=self.windows[i]), w, "attn_output")
        h = ops.add(h, ops.rms_norm(a, w["post_attention_norm"], eps=eps))
        return ops.add(h, ops.rms_norm(feed_forward(ops, h, w), w["post_ffw_norm"], eps=eps))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"exaone4": Exaone4.of}

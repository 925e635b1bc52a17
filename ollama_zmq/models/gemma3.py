"""Gemma 3: Gemma 2's norms and a norm of each query and key head; five of six
layers have a window and a base of their own.

Source: Gemma Team 2025, "Gemma 3 Technical Report". Linear scaling is for layers without a window only. Of the model
of 62 layers (27B) scores are scaled by sqrt(H / D), known by the number of layers, as in llama.cpp.
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
    NORMS,
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
class Gemma3:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    windowed_rope: Rope
    windows: tuple[int | None, ...]
    logit_cap: float  # 0 where there is none
    score_scale: float
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Gemma3:
        sizes = Sizes.of(keys)
        heads = sizes.heads[0]
        rope = Rope.of(keys, heads.head_dim, pairing="halves", theta=1e6)
        theta = keys.number("rope.freq_base_swa", 1e4)
        return cls(
            sizes,
            rope,
            Rope(heads.head_dim, rope.rotary_dim, theta, "halves"),
            windows(keys, period=6),
            logit_cap=keys.number("final_logit_softcapping", 0.0),
            score_scale=(heads.n_heads / sizes.hidden_size) ** 0.5 if sizes.n_layers == 62 else heads.scale,
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | NORMS_AFTER | ATTENTION | HEAD_NORMS | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.scale(hidden_state, by=self.sizes.hidden_size**0.5)

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q = ops.rms_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
        k = ops.rms_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        rope = self.windowed_rope if self.windows[i] else self.rope
        q, k = rope(ops, q, given, heads.n_heads), rope(ops, k, given, heads.n_kv_heads)
        a = grouped_attention(ops, q, k, v, given, heads, scale=self.score_scale, window=self.windows[i])
        a = linear(ops, a, w, "attn_output")
        h = ops.add(h, ops.rms_norm(a, w["post_attention_norm"], eps=eps))
        f = feed_forward(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w, "gelu_tanh")
        return ops.add(h, ops.rms_norm(f, w["post_ffw_norm"], eps=eps))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        logits = rms_head(ops, hidden_state, given, self.sizes.norm_eps)
        return ops.softcap(logits, cap=self.logit_cap) if self.logit_cap else logits


ARCHITECTURES = {"gemma3": Gemma3.of}

"""Gemma 2: norms before and after attention and feed-forward, soft-caps, and a window in every second layer.

Source: Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size". Of the model of 46 layers (27B)
scores are scaled by sqrt(H / D) in place of 1 / sqrt(E); a file does not say so, its number of layers does, as in
llama.cpp.
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
    windows,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Gemma2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    windows: tuple[int | None, ...]
    score_cap: float
    logit_cap: float
    score_scale: float
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Gemma2:
        sizes = Sizes.of(keys)
        heads = sizes.heads[0]
        return cls(
            sizes,
            Rope.of(keys, heads.head_dim, pairing="halves"),
            windows(keys, period=2, window=4096),
            score_cap=keys.number("attn_logit_softcapping", 50.0),
            logit_cap=keys.number("final_logit_softcapping", 30.0),
            score_scale=(heads.n_heads / sizes.hidden_size) ** 0.5 if sizes.n_layers == 46 else heads.scale,
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | NORMS_AFTER | ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.scale(hidden_state, by=self.sizes.hidden_size**0.5)

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = grouped_attention(
            ops, q, k, v, given, heads, scale=self.score_scale, window=self.windows[i], softcap=self.score_cap
        )
        a = linear(ops, a, w, "attn_output")
        h = ops.add(h, ops.rms_norm(a, w["post_attention_norm"], eps=eps))
        f = feed_forward(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w, "gelu_tanh")
        return ops.add(h, ops.rms_norm(f, w["post_ffw_norm"], eps=eps))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.softcap(rms_head(ops, hidden_state, given, self.sizes.norm_eps), cap=self.logit_cap)


ARCHITECTURES = {"gemma2": Gemma2.of}

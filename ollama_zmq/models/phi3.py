"""Phi 3, 3.5 and 4: llama's layer with fused projections, which are taken apart at the door, and LongRoPE.

Source: Abdin et al. 2024, "Phi-3 Technical Report"; Ding et al. 2024, "LongRoPE". A file has two sets of frequency
factors: those for short texts where the load's context is at most the original one, those for long ones above. A
sliding window in a file is ignored, as in llama.cpp; what that changes was measured as an NMSE of 0.37 on texts longer
than the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    GATED,
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
class Phi3:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {
        "output_norm": True,
        "output.bias": False,
        "rope_factors_long": False,
        "rope_factors_short": False,
    }

    @classmethod
    def of(cls, keys: Keys) -> Phi3:
        sizes = Sizes.of(keys)
        original = keys.integer("rope.scaling.original_context_length", sizes.context_length)
        is_long = (keys.num_ctx or sizes.context_length) > original
        rope = replace(
            Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"),
            factors="rope_factors_long" if is_long else "rope_factors_short",
            magnitude=keys.number("rope.scaling.attn_factor", 1.0),
        )
        return cls(sizes, rope)

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, feed_forward(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"phi3": Phi3.of}

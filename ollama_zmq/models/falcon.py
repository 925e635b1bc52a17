"""Falcon 7B to 180B: attention and feed-forward side by side behind one layer norm (7B) or one each (40B).

Source: Almazrouei et al. 2023, "The Falcon Series of Open Language Models". ``attn_norm_2`` is that of the attention
where there are two. llama.cpp takes the tanh form of GELU; the models were trained with the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    UNGATED,
    grouped_attention,
    layer_norm,
    layer_norm_head,
    linear,
    paged_kv,
    plain_feed_forward,
    projections,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Falcon:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "output_norm.bias": True}

    @classmethod
    def of(cls, keys: Keys) -> Falcon:
        sizes = Sizes.of(keys, norm="layer")
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        norms = {"attn_norm": True, "attn_norm.bias": True, "attn_norm_2": False, "attn_norm_2.bias": False}
        return norms | ATTENTION | UNGATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        x = layer_norm(ops, h, w, "attn_norm", eps)
        q, k, v = projections(ops, layer_norm(ops, h, w, "attn_norm_2", eps) if "attn_norm_2" in w else x, w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output")
        return ops.add(ops.add(h, a), plain_feed_forward(ops, x, w, "gelu_erf"))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return layer_norm_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"falcon": Falcon.of}

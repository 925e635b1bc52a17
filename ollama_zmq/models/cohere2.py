"""Command R7B, Command A, Aya: Command R's layer, with a window in three of four; the fourth is not turned by position.

Source: Cohere 2025, "Command A: An Enterprise-Ready Large Language Model".
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
    feed_forward,
    grouped_attention,
    layer_norm,
    layer_norm_head,
    linear,
    paged_kv,
    projections,
    windows,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Cohere2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    windows: tuple[int | None, ...]
    logit_scale: float
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Cohere2:
        sizes = Sizes.of(keys, norm="layer")
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved")
        return cls(
            sizes,
            rope,
            windows(keys, period=4),
            keys.number("logit_scale"),
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return {"attn_norm": True} | ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        x = layer_norm(ops, h, w, "attn_norm", eps)
        q, k, v = projections(ops, x, w)
        if self.windows[i]:
            q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = linear(ops, grouped_attention(ops, q, k, v, given, heads, window=self.windows[i]), w, "attn_output")
        return ops.add(ops.add(h, a), feed_forward(ops, x, w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.scale(layer_norm_head(ops, hidden_state, given, self.sizes.norm_eps), by=self.logit_scale)


ARCHITECTURES = {"cohere2": Cohere2.of}

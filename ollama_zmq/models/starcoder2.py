"""StarCoder 2, Nemotron 4, Jais 2: layer norms with biases, and a feed-forward without a gate.

StarCoder 2 has GELU (tanh) and biases everywhere; Nemotron a squared ReLU, norms stored as 1 + weight, and part of each
head turned by position; Jais 2 a squared ReLU and biases everywhere.

Sources: Lozhkov et al. 2024, "StarCoder 2 and The Stack v2"; Parmar et al. 2024, "Nemotron-4 15B Technical Report";
Inception, MBZUAI and Cerebras 2025, the code of Jais 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    LAYER_NORMS,
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
class StarCoder2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    function: str  # of the feed-forward
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "output_norm.bias": True}

    @classmethod
    def of(cls, function: str, keys: Keys) -> StarCoder2:
        sizes = Sizes.of(keys, norm="layer")
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="halves"), function)

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return LAYER_NORMS | ATTENTION | UNGATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, layer_norm(ops, h, w, "attn_norm", eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, plain_feed_forward(ops, layer_norm(ops, h, w, "ffn_norm", eps), w, self.function))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return layer_norm_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {
    "jais2": partial(StarCoder2.of, "relu2"),
    "nemotron": partial(StarCoder2.of, "relu2"),
    "starcoder2": partial(StarCoder2.of, "gelu_tanh"),
}

"""OLMo 1: llama's layer with layer norms that have no weights, and queries, keys and values held within limits.

Source: Groeneveld et al. 2024, "OLMo: Accelerating the Science of Language Models".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import ATTENTION, GATED, feed_forward, grouped_attention, linear, paged_kv, projections
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Olmo:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    limit: float  # of queries, keys and values; 0 for none
    globals: ClassVar[Mapping[str, bool]] = {}

    @classmethod
    def of(cls, keys: Keys) -> Olmo:
        sizes = Sizes.of(keys, norm="layer")
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved")
        return cls(
            sizes,
            rope,
            keys.number("attention.clamp_kqv", 0.0),
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return ATTENTION | GATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.layer_norm(h, eps=eps), w)
        if self.limit:
            q, k, v = (ops.clamp(x, limit=self.limit) for x in (q, k, v))
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, feed_forward(ops, ops.layer_norm(h, eps=eps), w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.linear(ops.layer_norm(hidden_state, eps=self.sizes.norm_eps), given.globals["output"])


ARCHITECTURES = {"olmo": Olmo.of}

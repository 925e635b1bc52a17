"""ERNIE 4.5, dense or with experts: llama's layer; a bias weighs in the choice of experts and not in their shares.

Source: Baidu 2025, "ERNIE 4.5 Technical Report". The first layers have no experts, then each n-th layer has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import CHOICE_BIAS, EXPERTS, SHARED, Routing, experts, shared_expert
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
class Ernie45:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    n_dense: int  # layers at the beginning without experts
    step: int  # each so many layers behind them have experts
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Ernie45:
        sizes = Sizes.of(keys)
        return cls(
            sizes,
            Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved"),
            Routing.of(keys),
            keys.integer("leading_dense_block_count", 0, least=0),
            keys.integer("interleave_moe_layer_step", 1),
        )

    def _has_experts(self, i: int) -> bool:
        return bool(self.routing.n_used) and i >= self.n_dense and (i + 1) % self.step == 0

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        mixture = EXPERTS | CHOICE_BIAS | dict.fromkeys(SHARED, False)
        return NORMS | ATTENTION | (mixture if self._has_experts(i) else GATED)

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        if not self._has_experts(i):
            return ops.add(h, feed_forward(ops, x, w))
        f = experts(ops, x, w, self.routing)
        return ops.add(h, ops.add(f, shared_expert(ops, x, w)) if "ffn_up_shexp" in w else f)

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"ernie4_5": Ernie45.of, "ernie4_5-moe": Ernie45.of}

"""Granite 3 and 4, dense or with experts: llama's layer with four scales, of embedding, scores, branches and logits.

Source: IBM 2024, "Granite 3.0 Language Models".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import EXPERTS, SHARED, Routing, experts, shared_expert
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
class Granite:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing  # to no experts where the feed-forward is dense
    embedding_scale: float
    branch_scale: float
    score_scale: float
    logit_scale: float
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> Granite:
        sizes = Sizes.of(keys)
        heads, logit_scale = sizes.heads[0], keys.number("logit_scale", 1.0)
        if logit_scale == 0:
            raise keys.error("logit_scale", 0, "another number: logits are divided by it")
        return cls(
            sizes,
            Rope.of(keys, heads.head_dim, pairing="interleaved"),
            Routing.of(keys),
            embedding_scale=keys.number("embedding_scale", 1.0),
            branch_scale=keys.number("residual_scale", 1.0),
            score_scale=keys.number("attention.scale", heads.scale),
            logit_scale=1.0 / logit_scale,
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        if not self.routing.n_used:
            return NORMS | ATTENTION | GATED
        return NORMS | ATTENTION | EXPERTS | dict.fromkeys(SHARED, False)

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.scale(hidden_state, by=self.embedding_scale)

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = grouped_attention(ops, q, k, v, given, heads, scale=self.score_scale)
        h = ops.add(h, ops.scale(linear(ops, a, w, "attn_output"), by=self.branch_scale))
        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        f = experts(ops, x, w, self.routing) if self.routing.n_used else feed_forward(ops, x, w)
        if "ffn_up_shexp" in w:
            f = ops.add(f, shared_expert(ops, x, w))
        return ops.add(h, ops.scale(f, by=self.branch_scale))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.scale(rms_head(ops, hidden_state, given, self.sizes.norm_eps), by=self.logit_scale)


ARCHITECTURES = {"granite": Granite.of, "granitemoe": Granite.of}

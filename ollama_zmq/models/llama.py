"""Llama: pre-norm transformer with RMSNorm, rotary embedding, grouped-query attention and SwiGLU.

Source: Touvron et al. 2023, "LLaMA" and "Llama 2"; Grattafiori et al. 2024, "The Llama 3 Herd of Models" (frequency
factors of the rotary embedding, stored in ``rope_freqs.weight``). SmolLM, Mistral and TinyLlama files have the same
architecture name, and so have Mixtral's, whose feed-forward has experts (Jiang et al. 2024, "Mixtral of Experts"):
each token goes through the ``expert_used_count`` best, whose shares are a softmax over those. Query and key rows are
stored so that rotary pairs are neighbours (2i, 2i + 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import EXPERTS, Routing, experts
from ollama_zmq.models.parts import (
    ATTENTION,
    GATED,
    NORMS,
    feed_forward,
    grouped_attention,
    linear,
    paged_kv,
    rms_head,
)
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Llama:
    """The sizes of one llama model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing  # to no experts where the feed-forward is dense
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "rope_freqs": False}

    @classmethod
    def of(cls, keys: Keys) -> Llama:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing="interleaved"), Routing.of(keys))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | (EXPERTS if self.routing.n_used else GATED)

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        x = ops.rms_norm(h, w["attn_norm"], eps=eps)
        q = self.rope(ops, linear(ops, x, w, "attn_q"), given, heads.n_heads)
        k = self.rope(ops, linear(ops, x, w, "attn_k"), given, heads.n_kv_heads)
        v = linear(ops, x, w, "attn_v")
        a = grouped_attention(ops, q, k, v, given, heads)
        h = ops.add(h, linear(ops, a, w, "attn_output"))

        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        return ops.add(h, experts(ops, x, w, self.routing) if self.routing.n_used else feed_forward(ops, x, w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"llama": Llama.of}

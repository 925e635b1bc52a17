"""DeepSeek V2, V3 and R1, Kimi K2, GLM 4.7 Flash: multi-head latent attention, experts in groups.

Sources: DeepSeek-AI 2024, "DeepSeek-V2" and "DeepSeek-V3 Technical Report". A token keeps one latent vector and one
turned key for all heads. The matrices that would make keys and values of it are multiplied with queries and with what
comes out instead ("absorbed"), so attention is that of many query heads over one key head of rank + turned numbers,
whose value is the latent vector. Scores of a context stretched by YaRN are multiplied by mscale^2 in place of cosines
and sines; ``yarn_log_multiplier`` is 0.1 mscale_all_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import CHOICE_BIAS, EXPERTS, SHARED, Routing, experts, shared_expert
from ollama_zmq.models.parts import GATED, NORMS, feed_forward, grouped_attention, linear, paged_kv, rms_head
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class DeepSeek2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    n_dense: int  # layers at the beginning without experts
    rank: int  # of the latent vector
    plain: int  # numbers of a query head that are not turned by position
    score_scale: float
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> DeepSeek2:
        sizes = Sizes.of(keys)
        rank, turned = keys.integer("attention.kv_lora_rank"), keys.integer("rope.dimension_count")
        head_dim = keys.integer("attention.key_length_mla")
        if turned >= head_dim or rank + turned != sizes.heads[0].head_dim:
            raise keys.error("rope.dimension_count", turned, f"attention.key_length {sizes.heads[0].head_dim} - {rank}")
        rope = Rope.of(keys, turned, pairing="interleaved")
        mscale = 1.0 - keys.number("rope.scaling.yarn_log_multiplier", 0.0) * log(rope.scale)
        gating = "softmax" if keys.has("expert_gating_func") or sizes.n_layers not in (47, 48) else "sigmoid"
        return cls(
            sizes,
            replace(rope, magnitude=1.0),
            Routing.of(keys, scores=gating, normalize=False),
            keys.integer("leading_dense_block_count", 0, least=0),
            rank,
            head_dim - turned,
            score_scale=mscale * mscale * head_dim**-0.5,
        )

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        queries = {"attn_q": False, "attn_q_a": False, "attn_q_a_norm": False, "attn_q_b": False}
        latent = {
            "attn_kv_a_mqa": True,
            "attn_kv_a_norm": True,
            "attn_k_b": True,
            "attn_v_b": True,
            "attn_output": True,
        }
        mixture = EXPERTS | SHARED | dict.fromkeys(CHOICE_BIAS, False)
        return NORMS | queries | latent | (GATED if i < self.n_dense or not self.routing.n_used else mixture)

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps = given.weights, self.sizes.norm_eps
        h = ops.add(h, self._attention(ops, i, ops.rms_norm(h, w["attn_norm"], eps=eps), given))
        x = ops.rms_norm(h, w["ffn_norm"], eps=eps)
        if "ffn_gate" in w:
            return ops.add(h, feed_forward(ops, x, w))
        return ops.add(h, ops.add(experts(ops, x, w, self.routing), shared_expert(ops, x, w)))

    def _attention(self, ops: Ops, i: int, x: Value, given: Given) -> Value:
        w, eps, heads, turned = given.weights, self.sizes.norm_eps, self.sizes.heads[i], self.rope.head_dim
        low = ops.rms_norm(linear(ops, x, w, "attn_q_a"), w["attn_q_a_norm"], eps=eps) if "attn_q_a" in w else x
        q, H = linear(ops, low, w, "attn_q_b" if "attn_q_a" in w else "attn_q"), heads.n_heads
        plain = ops.take_of_heads(q, n_heads=H, start=0, size=self.plain)
        place = self.rope(ops, ops.take_of_heads(q, n_heads=H, start=self.plain, size=turned), given, H)
        q = ops.join_heads(ops.linear_per_head(plain, w["attn_k_b"]), place, n_heads=H)

        kept = linear(ops, x, w, "attn_kv_a_mqa")
        latent = ops.take_of_heads(kept, n_heads=1, start=0, size=self.rank)
        latent = ops.rms_norm(latent, w["attn_kv_a_norm"], eps=eps)
        place = self.rope(ops, ops.take_of_heads(kept, n_heads=1, start=self.rank, size=turned), given, 1)
        k = ops.join_heads(latent, place, n_heads=1)

        a = grouped_attention(ops, q, k, latent, given, heads, scale=self.score_scale)
        return linear(ops, ops.linear_per_head(a, w["attn_v_b"]), w, "attn_output")

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"deepseek2": DeepSeek2.of}

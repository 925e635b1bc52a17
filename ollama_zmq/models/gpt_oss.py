"""gpt-oss (20b, 120b): sinks, a window in every second layer, biases everywhere, experts with a clamped SwiGLU.

Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card" and the model's code. YaRN's corners are whole pairs, as in
llama.cpp, though the model says they are not: an NMSE of 1.8e-3 at E = 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.mixtures import EXPERT_BIASES, EXPERTS, Routing, experts
from ollama_zmq.models.parts import ATTENTION, grouped_attention, linear, paged_kv, projections, rms_head, windows
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class GptOss:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    routing: Routing
    windows: tuple[int | None, ...]
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, keys: Keys) -> GptOss:
        sizes = Sizes.of(keys)
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="halves", theta=150_000.0)
        return cls(sizes, rope, Routing.of(keys), windows(keys, period=2))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        norms = {"attn_norm": True, "post_attention_norm": True, "attn_sinks": True}
        return norms | ATTENTION | EXPERTS | EXPERT_BIASES

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        a = grouped_attention(ops, q, k, v, given, heads, window=self.windows[i], sinks=w["attn_sinks"])
        h = ops.add(h, linear(ops, a, w, "attn_output"))
        x = ops.rms_norm(h, w["post_attention_norm"], eps=eps)
        return ops.add(h, experts(ops, x, w, self.routing, _clamped_swiglu))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ALPHA, LIMIT = 1.702, 7.0


def _clamped_swiglu(ops: Ops, gate: Value, up: Value) -> Value:
    return ops.swiglu_clamped(gate, up, alpha=ALPHA, limit=LIMIT)


ARCHITECTURES = {"gpt-oss": GptOss.of}

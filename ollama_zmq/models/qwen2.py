"""Qwen 2 and 2.5, ChatGLM 3: llama's layer with biases on queries, keys and values.

Rotary pairs are halves in Qwen, neighbours in half of each head in ChatGLM 3 and the GLM 4 of 2024, whose queries, keys
and values are stored as one matrix, as are gate and up; they are taken apart at the door.

Sources: Yang et al. 2024, "Qwen2 Technical Report"; the text part of Wang et al. 2024, "Qwen2-VL", whose sections of
the rotary embedding are one and the same where all positions are those of text; Team GLM 2024, "ChatGLM: A Family of
Large Language Models from GLM-130B to GLM-4 All Tools". Files of DeepSeek-R1-Distill-Qwen, Qwen-Coder and QwQ have the
same architecture name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import ATTENTION, GATED, NORMS, feed_forward, grouped_attention, linear, paged_kv, rms_head
from ollama_zmq.models.rotary import Rope
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Qwen2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True}

    @classmethod
    def of(cls, pairing: str, keys: Keys) -> Qwen2:
        sizes = Sizes.of(keys)
        return cls(sizes, Rope.of(keys, sizes.heads[0].head_dim, pairing=pairing))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | GATED

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
        return ops.add(h, feed_forward(ops, x, w))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {
    "chatglm": partial(Qwen2.of, "interleaved"),
    "qwen2": partial(Qwen2.of, "halves"),
    "qwen2vl": partial(Qwen2.of, "halves"),
}

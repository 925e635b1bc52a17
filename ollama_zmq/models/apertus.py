"""Apertus: llama's layer with a norm of each query and key head; in place of a gate xIELU, whose slopes are learned.

Source: Swiss AI Initiative 2025, "Apertus"; Huang & Schlag 2025, "Deriving Activation Functions Using Integration".
Files have the slopes as they are learned: softplus makes them positive, and beta is added to that of the left side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log1p
from typing import ClassVar

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.parts import (
    ATTENTION,
    HEAD_NORMS,
    NORMS,
    UNGATED,
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
class Apertus:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    rope: Rope
    alpha_p: tuple[float, ...]  # by layer
    alpha_n: tuple[float, ...]
    beta: tuple[float, ...]
    eps: tuple[float, ...]
    globals: ClassVar[Mapping[str, bool]] = {"output_norm": True, "rope_freqs": False}

    @classmethod
    def of(cls, keys: Keys) -> Apertus:
        sizes = Sizes.of(keys)
        rope = Rope.of(keys, sizes.heads[0].head_dim, pairing="halves")
        right, left, beta, eps = (keys.numbers(f"xielu.{name}") for name in ("alpha_p", "alpha_n", "beta", "eps"))
        alpha_n = tuple(b + softplus(a) for a, b in zip(left, beta, strict=True))
        return cls(sizes, rope, tuple(map(softplus, right)), alpha_n, beta, eps)

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return NORMS | ATTENTION | HEAD_NORMS | UNGATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, ops.rms_norm(h, w["attn_norm"], eps=eps), w)
        q = ops.rms_norm(q, w["attn_q_norm"], eps=eps, head_dim=heads.head_dim)
        k = ops.rms_norm(k, w["attn_k_norm"], eps=eps, head_dim=heads.head_dim)
        q, k = self.rope(ops, q, given, heads.n_heads), self.rope(ops, k, given, heads.n_kv_heads)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        x = linear(ops, ops.rms_norm(h, w["ffn_norm"], eps=eps), w, "ffn_up")
        x = ops.xielu(x, alpha_p=self.alpha_p[i], alpha_n=self.alpha_n[i], beta=self.beta[i], eps=self.eps[i])
        return ops.add(h, linear(ops, x, w, "ffn_down"))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return rms_head(ops, hidden_state, given, self.sizes.norm_eps)


def softplus(x: float) -> float:
    """Return ln(1 + exp(x))."""
    return max(x, 0.0) + log1p(exp(-abs(x)))


ARCHITECTURES = {"apertus": Apertus.of}

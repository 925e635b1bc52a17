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
from typing import Any

from ollama_zmq.errors import ModelFileError
from ollama_zmq.models.architecture import LayerValues
from ollama_zmq.models.keys import Keys, rope_scale
from ollama_zmq.ops.builder import Ops, Value

ATTENTION_WEIGHTS = {
    "attn_norm": True,  # D
    "attn_q": True,  # H*E D
    "attn_q.bias": False,  # H*E
    "attn_k": True,  # G*E D
    "attn_k.bias": False,  # G*E
    "attn_v": True,  # G*E D
    "attn_v.bias": False,  # G*E
    "attn_output": True,  # D H*E
    "attn_output.bias": False,  # D
    "ffn_norm": True,  # D
}
DENSE_WEIGHTS = {
    "ffn_gate": True,  # F D
    "ffn_gate.bias": False,  # F
    "ffn_up": True,  # F D
    "ffn_up.bias": False,  # F
    "ffn_down": True,  # D F
    "ffn_down.bias": False,  # D
}
EXPERT_WEIGHTS = {
    "ffn_gate_inp": True,  # X D
    "ffn_gate_exps": True,  # X F D
    "ffn_up_exps": True,  # X F D
    "ffn_down_exps": True,  # X D F
}


@dataclass(frozen=True, slots=True)
class Llama:
    """The sizes of one llama model, and its layers written as ops."""

    n_layers: int
    hidden_size: int  # D
    n_heads: int  # H
    n_kv_heads: int  # G; H is a multiple of G
    head_dim: int  # E
    rotary_dim: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_scale: float
    n_experts: int = 0  # X; 0 where the feed-forward is dense
    n_used: int = 0  # experts of one token

    @property
    def layer_weights(self) -> Mapping[str, bool]:
        """Name within a layer -> whether every file must have it."""
        return ATTENTION_WEIGHTS | (EXPERT_WEIGHTS if self.n_experts else DENSE_WEIGHTS)

    def enter(self, ops: Ops, hidden_state: Value) -> Value:
        return hidden_state

    def layer(self, ops: Ops, i: int, hidden_state: Value, given: LayerValues) -> Value:
        w = given.weights
        h = hidden_state
        x = ops.rms_norm(h, w["attn_norm"], eps=self.norm_eps)
        q = self._rope(ops, ops.linear(x, w["attn_q"], w.get("attn_q.bias")), given, self.n_heads)
        k = self._rope(ops, ops.linear(x, w["attn_k"], w.get("attn_k.bias")), given, self.n_kv_heads)
        v = ops.linear(x, w["attn_v"], w.get("attn_v.bias"))
        ops.store_kv(k, v, given.cache, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim)
        a = ops.attention(
            q,
            given.cache,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
        )
        h = ops.add(h, ops.linear(a, w["attn_output"], w.get("attn_output.bias")))

        x = ops.rms_norm(h, w["ffn_norm"], eps=self.norm_eps)
        return ops.add(h, self._experts(ops, x, w) if self.n_experts else self._dense(ops, x, w))

    def _dense(self, ops: Ops, x: Value, w: Mapping[str, Value]) -> Value:
        gate = ops.linear(x, w["ffn_gate"], w.get("ffn_gate.bias"))
        up = ops.linear(x, w["ffn_up"], w.get("ffn_up.bias"))
        return ops.linear(ops.silu_mul(gate, up), w["ffn_down"], w.get("ffn_down.bias"))

    def _experts(self, ops: Ops, x: Value, w: Mapping[str, Value]) -> Value:
        routing = ops.route(ops.linear(x, w["ffn_gate_inp"]), n_used=self.n_used, softmax_over="chosen")
        gate = ops.expert_linear(x, routing, w["ffn_gate_exps"], n_used=self.n_used)
        up = ops.expert_linear(x, routing, w["ffn_up_exps"], n_used=self.n_used)
        down = ops.expert_linear(ops.silu_mul(gate, up), routing, w["ffn_down_exps"], n_used=self.n_used)
        return ops.expert_sum(down, routing, n_used=self.n_used, width=self.hidden_size)

    def head(self, ops: Ops, hidden_state: Value, norm: Value, output: Value) -> Value:
        return ops.linear(ops.rms_norm(hidden_state, norm, eps=self.norm_eps), output)

    def _rope(self, ops: Ops, x: Value, given: LayerValues, n_heads: int) -> Value:
        return ops.rope(
            x,
            given.positions,
            given.rope_factors,
            n_heads=n_heads,
            head_dim=self.head_dim,
            rotary_dim=self.rotary_dim,
            theta=self.rope_theta,
            scale=self.rope_scale,
        )


class LlamaArchitecture:
    """``general.architecture = llama``."""

    def from_metadata(self, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Llama:
        """Read the ``llama.*`` keys of a GGUF header.

        Raises:
            ModelFileError: a key is missing or impossible, or the file asks for a rotary scaling we lack.
        """
        keys = Keys(metadata, "llama")
        n_experts = keys.integer("expert_count", 0, least=0)
        n_used = keys.integer("expert_used_count", 0, least=0)
        if bool(n_experts) != bool(n_used) or n_used > n_experts:
            raise ModelFileError(f"llama.expert_used_count = {n_used}, of llama.expert_count = {n_experts}")
        n_heads = keys.integer("attention.head_count")
        n_kv_heads = keys.integer("attention.head_count_kv", n_heads)
        hidden_size = keys.integer("embedding_length")
        head_dim = keys.integer("attention.key_length", hidden_size // n_heads)
        if keys.integer("attention.value_length", head_dim) != head_dim:
            raise ModelFileError("llama.attention.value_length differs from key_length, which is not supported")
        if n_heads % n_kv_heads:
            raise ModelFileError(
                f"llama.attention.head_count {n_heads} is not a multiple of head_count_kv {n_kv_heads}"
            )
        return Llama(
            n_layers=keys.integer("block_count"),
            hidden_size=hidden_size,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            rotary_dim=keys.integer("rope.dimension_count", head_dim),
            context_length=keys.integer("context_length"),
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            rope_theta=keys.number("rope.freq_base", 10000.0),
            rope_scale=rope_scale(keys),
            n_experts=n_experts,
            n_used=n_used,
        )


ARCHITECTURE = LlamaArchitecture()

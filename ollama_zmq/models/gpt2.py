"""GPT-2 and StarCoder: learned positions in place of a rotary embedding, layer norms, biases, GELU without a gate.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Li et al. 2023, "StarCoder: may the
source be with you!", whose query heads share one key-value head (Shazeer 2019, "Fast Transformer Decoding"). Both have
the tanh form of GELU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from ollama_zmq.models.sizes import Sizes
from ollama_zmq.ops.builder import Ops, Value


@dataclass(frozen=True, slots=True)
class Gpt2:
    """The sizes of one model, and its layers written as ops."""

    sizes: Sizes
    globals: ClassVar[Mapping[str, bool]] = {"position_embd": True, "output_norm": True, "output_norm.bias": True}

    @classmethod
    def of(cls, keys: Keys) -> Gpt2:
        return cls(Sizes.of(keys, norm="layer"))

    def layer_weights(self, i: int) -> Mapping[str, bool]:
        return LAYER_NORMS | ATTENTION | UNGATED

    def states(self, i: int) -> tuple[PagedKv, ...]:
        return paged_kv(self.sizes.heads[i])

    def enter(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return ops.add(hidden_state, ops.embed(given.positions, given.globals["position_embd"]))

    def layer(self, ops: Ops, i: int, h: Value, given: Given) -> Value:
        w, eps, heads = given.weights, self.sizes.norm_eps, self.sizes.heads[i]
        q, k, v = projections(ops, layer_norm(ops, h, w, "attn_norm", eps), w)
        h = ops.add(h, linear(ops, grouped_attention(ops, q, k, v, given, heads), w, "attn_output"))
        return ops.add(h, plain_feed_forward(ops, layer_norm(ops, h, w, "ffn_norm", eps), w, "gelu_tanh"))

    def leave(self, ops: Ops, hidden_state: Value, given: Given) -> Value:
        return layer_norm_head(ops, hidden_state, given, self.sizes.norm_eps)


ARCHITECTURES = {"gpt2": Gpt2.of, "starcoder": Gpt2.of}

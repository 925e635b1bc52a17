"""What the configs and tensors of most decoders have in common."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np

from ollama_zmq.convert.checkpoint import Array, Checkpoint
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Names, float32_tensor
from ollama_zmq.formats.gguf_writer import NewTensor, Value

Pairs = dict[str, Value]

ATTENTION: Names = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
HEAD_NORMS: Names = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
GATED: Names = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMS_BEFORE: Names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
DECODER: Names = ATTENTION | GATED | NORMS_BEFORE


def decoder_keys(config: CheckpointConfig) -> Pairs:
    """Sizes, heads, epsilon and rotary embedding, as nearly every decoder has them."""
    n_heads = config.integer("num_attention_heads", "n_head")
    keys: Pairs = {
        "block_count": config.integer("num_hidden_layers", "n_layer"),
        "context_length": config.integer("max_position_embeddings", "n_positions", "n_ctx"),
        "embedding_length": config.integer("hidden_size", "n_embd"),
        "feed_forward_length": config.integer("intermediate_size", "ffn_hidden_size", "n_inner"),
        "attention.head_count": n_heads,
        "attention.head_count_kv": config.integer("num_key_value_heads", default=n_heads),
        "vocab_size": config.integer("vocab_size"),
    }
    if "rms_norm_eps" in config:
        keys["attention.layer_norm_rms_epsilon"] = config.number("rms_norm_eps")
    if "head_dim" in config:
        keys["attention.key_length"] = keys["attention.value_length"] = config.integer("head_dim")
    return keys | rope_keys(config)


def head_dim(config: CheckpointConfig) -> int:
    """Return E: given, or the hidden state's width shared out among the heads."""
    return config.integer("head_dim", default=config.integer("hidden_size") // config.integer("num_attention_heads"))


def rotary_dim(config: CheckpointConfig) -> int:
    """Return how many numbers of a head are turned by position."""
    share = rope_table(config).number(
        "partial_rotary_factor", default=config.number("partial_rotary_factor", default=1)
    )
    return int(head_dim(config) * share)


def rope_table(config: CheckpointConfig) -> CheckpointConfig:
    """Return what the config says of the rotary embedding: ``rope_parameters``, or in older files ``rope_scaling``."""
    table = config.table("rope_parameters", "rope_scaling")
    return table.table("full_attention") if "full_attention" in table else table


def rope_keys(config: CheckpointConfig) -> Pairs:
    """The keys ``rope.*``; frequency factors that stand in a tensor are none of them."""
    table = rope_table(config)
    keys: Pairs = {"rope.dimension_count": rotary_dim(config)}
    if "rope_theta" in table or "rope_theta" in config:
        keys["rope.freq_base"] = table.number("rope_theta", default=config.number("rope_theta", default=0.0))
    return keys | scaling_keys(table, config)


def scaling_keys(table: CheckpointConfig, config: CheckpointConfig) -> Pairs:
    """The keys ``rope.scaling.*`` of linear scaling and of YaRN. Raises ModelFileError for a kind nobody knows."""
    kind = table.get("rope_type", "type") or "default"
    match kind:
        case "default" | "llama3" | "longrope" | "su" | "mrope" | "proportional":
            return {}
        case "linear":
            return {"rope.scaling.type": "linear", "rope.scaling.factor": table.number("factor")}
        case "yarn":
            return _yarn_keys(table, config)
    raise table.error("rope_type", kind, "default, linear, llama3, longrope or yarn")


def _yarn_keys(table: CheckpointConfig, config: CheckpointConfig) -> Pairs:
    names: dict[str, str] = {
        "attention_factor": "rope.scaling.attn_factor",
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
    }
    trained = table.integer(
        "original_max_position_embeddings", default=config.integer("max_position_embeddings", default=0)
    )
    found: Pairs = {key: table.number(name) for name, key in names.items() if name in table}
    return found | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": table.number("factor"),
        "rope.scaling.original_context_length": trained,
    }


def llama3_factors(checkpoint: Checkpoint) -> Sequence[NewTensor]:
    """The frequency factors of Llama 3.1, if the config asks for them: long waves are stretched, short ones are not.

    Source: Meta's ``llama-models``, ``models/llama3/model.py``, apply_scaling.
    """
    config = checkpoint.config
    table = rope_table(config)
    if table.get("rope_type", "type") != "llama3":
        return ()
    base = table.number("rope_theta", default=config.number("rope_theta", default=10_000.0))
    factor, trained = table.number("factor"), table.integer("original_max_position_embeddings")
    low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
    dim = rotary_dim(config)
    wavelengths = 2 * pi * base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    smooth = np.clip((trained / wavelengths - low) / (high - low), 0.0, 1.0)
    return [float32_tensor("rope_freqs.weight", 1 / ((1 - smooth) / factor + smooth))]


def numbers_of(table: CheckpointConfig, name: str, count: int) -> Array:
    """Return a list of *count* numbers. Raises ModelFileError."""
    values: Any = table.get(name)
    if not isinstance(values, list) or len(values) != count or not all(isinstance(v, int | float) for v in values):
        raise table.error(name, values, f"{count} numbers")
    return np.array(values, np.float32)

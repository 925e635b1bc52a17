"""Decoders with layer norms or without a gate, by the class that their makers run them with.

Keys and names are those that llama.cpp's ``convert_hf_to_gguf.py`` writes.
"""

from __future__ import annotations

import numpy as np

from ollama_zmq.convert.checkpoint import Array, Checkpoint
from ollama_zmq.convert.common import ATTENTION, DECODER, GATED, HEAD_NORMS, Pairs, decoder_keys, llama3_factors
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Change, Conversion, Names, as_float32, plus_one
from ollama_zmq.convert.decoders import NEIGHBOURS

UNGATED: Names = {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMS: Names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
XIELU = ("alpha_p", "alpha_n", "beta", "eps")
OLMO_EPSILON = 1e-5  # of its class, whatever its config says


def _layer_norm_keys(config: CheckpointConfig) -> Pairs:
    epsilon = config.number("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps", default=1e-5)
    return decoder_keys(config) | {"attention.layer_norm_epsilon": epsilon}


def _cohere_keys(config: CheckpointConfig) -> Pairs:
    found = _layer_norm_keys(config) | {"logit_scale": config.number("logit_scale", default=0.0625)}
    if config.get("layer_types", "sliding_window_pattern"):
        found["attention.sliding_window"] = config.integer("sliding_window")
    return found


def _neox_keys(config: CheckpointConfig) -> Pairs:
    return _layer_norm_keys(config) | {
        "attention.head_count_kv": config.integer("num_attention_heads"),
        "use_parallel_residual": config.flag("use_parallel_residual", default=True),
    }


def _falcon_keys(config: CheckpointConfig) -> Pairs:
    return _layer_norm_keys(config) | {"attention.head_count_kv": _falcon_groups(config)}


def _falcon_groups(config: CheckpointConfig) -> int:
    """How many key-value heads there are. Raises ModelFileError."""
    n_heads = config.integer("num_attention_heads", "n_head")
    if config.flag("new_decoder_architecture", default=False):
        return config.integer("num_kv_heads", "n_head_kv", default=n_heads)
    return 1 if config.flag("multi_query", default=True) else n_heads


def _olmo_keys(config: CheckpointConfig) -> Pairs:
    found = _layer_norm_keys(config) | {"attention.layer_norm_epsilon": OLMO_EPSILON}
    if config.get("clip_qkv"):
        found["attention.clamp_kqv"] = config.number("clip_qkv")
    return found


def _gpt2_keys(config: CheckpointConfig) -> Pairs:
    n_kv_heads = 1 if config.model_class == "GPTBigCodeForCausalLM" else config.integer("num_attention_heads", "n_head")
    if n_kv_heads == 1 and not config.flag("multi_query", default=True):
        raise config.error("multi_query", False, "true")
    width = config.integer("hidden_size", "n_embd")
    return {
        "block_count": config.integer("num_hidden_layers", "n_layer"),
        "context_length": config.integer("max_position_embeddings", "n_positions", "n_ctx"),
        "embedding_length": width,
        "feed_forward_length": config.integer("n_inner", default=4 * width),
        "attention.head_count": config.integer("num_attention_heads", "n_head"),
        "attention.head_count_kv": n_kv_heads,
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", default=1e-5),
        "vocab_size": config.integer("vocab_size"),
    }


def _transposed(values: Array, config: CheckpointConfig) -> Array:
    return np.ascontiguousarray(values.T)


def _apart(n_groups: str) -> Change:
    """Rows that are queries, a key and a value for each group of heads, as all queries, all keys, all values."""

    def change(values: Array, config: CheckpointConfig) -> Array:
        groups = _falcon_groups(config) if n_groups == "falcon" else config.integer("num_attention_heads")
        n_heads = config.integer("num_attention_heads", "n_head")
        by_group = values.reshape(groups, n_heads // groups + 2, -1, *values.shape[1:])
        parts = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])

    return change


def _xielu_keys(checkpoint: Checkpoint) -> Pairs:
    found: Pairs = {}
    for name in XIELU:
        tensors = [f"model.layers.{i}.mlp.act_fn.{name}" for i in range(checkpoint.config.integer("num_hidden_layers"))]
        if all(tensor in checkpoint.tensors for tensor in tensors):
            values = [as_float32(checkpoint.values(tensor)).reshape(-1)[0] for tensor in tensors]
            found[f"xielu.{name}"] = [float(value) for value in values]
    return found


GPT2: Names = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GPT2_GLOBALS: Names = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
CONVERSIONS = {
    "GPT2LMHeadModel": Conversion(
        "gpt2",
        _gpt2_keys,
        GPT2,
        GPT2_GLOBALS,
        changes=dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), _transposed),
    ),
    "GPTBigCodeForCausalLM": Conversion("starcoder", _gpt2_keys, GPT2, GPT2_GLOBALS),
    "CohereForCausalLM": Conversion("command-r", _cohere_keys, DECODER | HEAD_NORMS),
    "Cohere2ForCausalLM": Conversion("cohere2", _cohere_keys, DECODER),
    "Starcoder2ForCausalLM": Conversion(
        "starcoder2", _layer_norm_keys, ATTENTION | NORMS | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    ),
    "GPTNeoXForCausalLM": Conversion(
        "gptneox",
        _neox_keys,
        NORMS
        | {
            "attention.query_key_value": "attn_qkv",
            "attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
        },
        {"embed_in": "token_embd", "final_layer_norm": "output_norm", "embed_out": "output"},
        changes={"attn_qkv": _apart("neox"), "attn_qkv.bias": _apart("neox")},
    ),
    "PhiForCausalLM": Conversion(
        "phi2",
        _layer_norm_keys,
        ATTENTION | NORMS | {"self_attn.dense": "attn_output", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"},
        {"embed_tokens": "token_embd", "final_layernorm": "output_norm", "lm_head": "output"},
    ),
    "FalconForCausalLM": Conversion(
        "falcon",
        _falcon_keys,
        {
            "self_attention.query_key_value": "attn_qkv",
            "self_attention.dense": "attn_output",
            "mlp.dense_h_to_4h": "ffn_up",
            "mlp.dense_4h_to_h": "ffn_down",
            "input_layernorm": "attn_norm",
            "ln_mlp": "attn_norm",
            "ln_attn": "attn_norm_2",
        },
        {"word_embeddings": "token_embd", "ln_f": "output_norm", "lm_head": "output"},
        changes={"attn_qkv": _apart("falcon"), "attn_qkv.bias": _apart("falcon")},
    ),
    "OlmoForCausalLM": Conversion("olmo", _olmo_keys, ATTENTION | GATED, changes=NEIGHBOURS),
    "NemotronForCausalLM": Conversion(
        "nemotron",
        _layer_norm_keys,
        ATTENTION | NORMS | UNGATED,
        changes=dict.fromkeys(("attn_norm", "ffn_norm", "output_norm"), plus_one),
    ),
    "ApertusForCausalLM": Conversion(
        "apertus",
        decoder_keys,
        ATTENTION
        | UNGATED
        | HEAD_NORMS
        | {"attention_layernorm": "attn_norm", "feedforward_layernorm": "ffn_norm"}
        | {f"mlp.act_fn.{name}": () for name in XIELU},
        more_keys=_xielu_keys,
        adds=llama3_factors,
    ),
    "ArceeForCausalLM": Conversion(
        "arcee", decoder_keys, ATTENTION | NORMS | UNGATED, changes=NEIGHBOURS, adds=llama3_factors
    ),
    "Jais2ForCausalLM": Conversion("jais2", _layer_norm_keys, ATTENTION | NORMS | UNGATED),
    "Ernie4_5ForCausalLM": Conversion("ernie4_5", decoder_keys, DECODER),
}

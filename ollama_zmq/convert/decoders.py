"""Decoders whose layers are attention and one feed-forward, by the class that their makers run them with.

Keys and names are those that llama.cpp's ``convert_hf_to_gguf.py`` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, sqrt

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.common import (
    ATTENTION,
    DECODER,
    GATED,
    HEAD_NORMS,
    Pairs,
    decoder_keys,
    head_dim,
    llama3_factors,
    numbers_of,
    rope_table,
    rotary_dim,
)
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Conversion, Names, float32_tensor, interleaved, plus_one
from ollama_zmq.formats.gguf_writer import NewTensor

NEIGHBOURS = {
    "attn_q": interleaved("num_attention_heads"),
    "attn_q.bias": interleaved("num_attention_heads"),
    "attn_k": interleaved("num_key_value_heads"),
    "attn_k.bias": interleaved("num_key_value_heads"),
}
GEMMA_NORMS = dict.fromkeys(
    ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm", "output_norm"),
    plus_one,
)
NORMS_AROUND: Names = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
NORMS_AFTER: Names = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}


def granite_keys(config: CheckpointConfig) -> Pairs:
    """The four scales of Granite beside what every decoder has."""
    return decoder_keys(config) | {
        "attention.scale": config.number("attention_multiplier"),
        "embedding_scale": config.number("embedding_multiplier"),
        "residual_scale": config.number("residual_multiplier"),
        "logit_scale": config.number("logits_scaling"),
    }


def _gemma_keys(config: CheckpointConfig) -> Pairs:
    return decoder_keys(config) | _lengths(config.integer("head_dim", default=256))


def _lengths(head_dim: int) -> Pairs:
    return {"attention.key_length": head_dim, "attention.value_length": head_dim}


def _gemma2_keys(config: CheckpointConfig) -> Pairs:
    return _gemma_keys(config) | {
        "attn_logit_softcapping": config.number("attn_logit_softcapping", default=50.0),
        "final_logit_softcapping": config.number("final_logit_softcapping", default=30.0),
        "attention.sliding_window": config.integer("sliding_window", default=4096),
    }


def gemma3_keys(config: CheckpointConfig) -> Pairs:
    """Gemma 3: the config leaves out what is as in its class's defaults."""
    whole = CheckpointConfig({**GEMMA3_DEFAULTS, **{name: config.get(name) for name in GEMMA3_KEYS if name in config}})
    local = config.table("rope_parameters").table("sliding_attention")
    found = (
        decoder_keys(whole)
        | _lengths(whole.integer("head_dim"))
        | {
            "rope.freq_base_swa": local.number("rope_theta", default=whole.number("rope_local_base_freq")),
            "attention.sliding_window": whole.integer("sliding_window"),
        }
    )
    if "final_logit_softcapping" in config:
        found["final_logit_softcapping"] = config.number("final_logit_softcapping")
    return found


GEMMA3_DEFAULTS: Mapping[str, object] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "sliding_window": 4096,
}
GEMMA3_KEYS = (
    *GEMMA3_DEFAULTS,
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "rope_scaling",
    "rope_parameters",
)


def _phi3_keys(config: CheckpointConfig) -> Pairs:
    context = config.integer("max_position_embeddings")
    trained = config.integer("original_max_position_embeddings", default=context)
    found = decoder_keys(config) | {"rope.scaling.original_context_length": trained}
    if window := config.get("sliding_window"):
        found["attention.sliding_window"] = window
    if config.table("rope_scaling", "rope_parameters").get("long_factor"):
        longer = context / trained
        found["rope.scaling.attn_factor"] = sqrt(1 + log(longer) / log(trained)) if longer > 1 else 1.0
    return found


def _phi3_factors(checkpoint: Checkpoint) -> Sequence[NewTensor]:
    table, count = rope_table(checkpoint.config), rotary_dim(checkpoint.config) // 2
    if "long_factor" not in table:
        return ()
    named = {"rope_factors_long": "long_factor", "rope_factors_short": "short_factor"}
    return [float32_tensor(f"{name}.weight", numbers_of(table, key, count)) for name, key in named.items()]


def _mistral3_keys(config: CheckpointConfig) -> Pairs:
    table, found = rope_table(config), decoder_keys(config)
    if "mscale_all_dim" in table:
        found["rope.scaling.yarn_log_multiplier"] = table.number("mscale_all_dim")
    if "llama_4_scaling_beta" in table:
        found["attention.temperature_scale"] = table.number("llama_4_scaling_beta")
    return found


def _olmo2_keys(config: CheckpointConfig) -> Pairs:
    found = decoder_keys(config)
    if config.get("layer_types"):
        kinds = config.words("layer_types")
        found["attention.sliding_window"] = config.integer("sliding_window")
        found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    return found


def _exaone4_keys(config: CheckpointConfig) -> Pairs:
    found = decoder_keys(config)
    if window := config.get("sliding_window"):
        found["attention.sliding_window"] = window
        if config.get("layer_types"):
            kinds = config.words("layer_types")
            found["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in kinds]
    return found


def hunyuan_keys(config: CheckpointConfig) -> Pairs:
    """Hunyuan: the factor of "dynamic" scaling is part of the base of its rotary embedding."""
    table = rope_table(config)
    scaled = CheckpointConfig(
        {"rope_theta": table.number("rope_theta", default=config.number("rope_theta", default=10_000.0))}
    )
    if table.get("rope_type", "type") == "dynamic" and table.get("alpha"):
        dim = head_dim(config)
        scaled = CheckpointConfig(
            {"rope_theta": scaled.number("rope_theta") * table.number("alpha") ** (dim / (dim - 2))}
        )
    without = CheckpointConfig({name: config.get(name) for name in HUNYUAN_KEYS if name in config})
    return decoder_keys(without) | {"rope.freq_base": scaled.number("rope_theta")}


HUNYUAN_KEYS = (
    "num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "vocab_size", "rms_norm_eps", "head_dim",
)  # fmt: skip


def _stablelm_keys(config: CheckpointConfig) -> Pairs:
    return decoder_keys(config) | {
        "attention.layer_norm_epsilon": config.number("layer_norm_eps", "norm_eps", default=1e-5),
        "use_parallel_residual": config.flag("use_parallel_residual", default=True),
    }


QWEN3: Names = DECODER | HEAD_NORMS
CONVERSIONS = {
    "LlamaForCausalLM": Conversion("llama", decoder_keys, DECODER, changes=NEIGHBOURS, adds=llama3_factors),
    "MistralForCausalLM": Conversion("llama", decoder_keys, DECODER, changes=NEIGHBOURS),
    "Mistral3ForConditionalGeneration": Conversion("mistral3", _mistral3_keys, DECODER, changes=NEIGHBOURS),
    "Ministral3ForCausalLM": Conversion("mistral3", _mistral3_keys, DECODER, changes=NEIGHBOURS),
    "Qwen2ForCausalLM": Conversion("qwen2", decoder_keys, DECODER),
    "Qwen3ForCausalLM": Conversion("qwen3", decoder_keys, QWEN3),
    "GemmaForCausalLM": Conversion("gemma", _gemma_keys, DECODER, changes=GEMMA_NORMS),
    "Gemma2ForCausalLM": Conversion("gemma2", _gemma2_keys, ATTENTION | GATED | NORMS_AROUND, changes=GEMMA_NORMS),
    "Gemma3ForCausalLM": Conversion(
        "gemma3", gemma3_keys, ATTENTION | GATED | NORMS_AROUND | HEAD_NORMS, changes=GEMMA_NORMS
    ),
    "Phi3ForCausalLM": Conversion(
        "phi3",
        _phi3_keys,
        DECODER | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
        adds=_phi3_factors,
    ),
    "GraniteForCausalLM": Conversion("granite", granite_keys, DECODER, changes=NEIGHBOURS),
    "Olmo2ForCausalLM": Conversion("olmo2", _olmo2_keys, ATTENTION | GATED | NORMS_AFTER | HEAD_NORMS),
    "Glm4ForCausalLM": Conversion(
        "glm4",
        decoder_keys,
        DECODER
        | {
            "mlp.gate_up_proj": "ffn_up",
            "post_self_attn_layernorm": "post_attention_norm",
            "post_mlp_layernorm": "post_ffw_norm",
        },
    ),
    "SmolLM3ForCausalLM": Conversion("smollm3", decoder_keys, DECODER, changes=NEIGHBOURS),
    "Exaone4ForCausalLM": Conversion(
        "exaone4", _exaone4_keys, ATTENTION | GATED | NORMS_AFTER | HEAD_NORMS, adds=llama3_factors
    ),
    "HunYuanDenseV1ForCausalLM": Conversion(
        "hunyuan-dense",
        hunyuan_keys,
        DECODER | {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
    ),
    "SeedOssForCausalLM": Conversion(
        "seed_oss", decoder_keys, DECODER | {"post_attention_layernorm": "post_attention_norm"}
    ),
    "StableLmForCausalLM": Conversion(
        "stablelm",
        _stablelm_keys,
        DECODER | {"self_attn.q_layernorm.norms.X": "attn_q_norm", "self_attn.k_layernorm.norms.X": "attn_k_norm"},
    ),
}
CONVERSIONS["Olmo3ForCausalLM"] = CONVERSIONS["Olmo2ForCausalLM"]
CONVERSIONS["Gemma3ForConditionalGeneration"] = CONVERSIONS["Gemma3ForCausalLM"]

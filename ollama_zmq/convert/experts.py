"""Decoders with mixtures of experts, by the class that their makers run them with.

Matrices of experts stand one by one in most checkpoints and stacked in some; both are known. Keys and names are those
that llama.cpp's ``convert_hf_to_gguf.py`` writes.
"""

from __future__ import annotations

from ollama_zmq.convert.common import (
    ATTENTION,
    DECODER,
    HEAD_NORMS,
    NORMS_BEFORE,
    Pairs,
    decoder_keys,
)
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import (
    Conversion,
    Names,
    Parts,
    first_half,
    second_half,
)
from ollama_zmq.convert.decoders import NEIGHBOURS, granite_keys, hunyuan_keys

SOFTMAX, SIGMOID = 1, 2
STACKED_HALVES: Parts = (("ffn_gate_exps", first_half), ("ffn_up_exps", second_half))
EXPERTS: Names = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.X.gate_proj": "ffn_gate_exps",
    "mlp.experts.X.up_proj": "ffn_up_exps",
    "mlp.experts.X.down_proj": "ffn_down_exps",
    "mlp.experts.gate_up_proj": tuple((f"{name}.weight", half) for name, half in STACKED_HALVES),
    "mlp.experts.down_proj": "ffn_down_exps.weight",
}
BIASED: Names = {"mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}


def shared(name: str) -> Names:
    """Names of an expert that every token goes through, which its makers call *name*."""
    parts = {"gate_proj": "ffn_gate_shexp", "up_proj": "ffn_up_shexp", "down_proj": "ffn_down_shexp"}
    return {f"mlp.{name}.{theirs}": ours for theirs, ours in parts.items()}


def expert_keys(config: CheckpointConfig) -> Pairs:
    """Keys of a decoder and of its experts: how many there are, how many a token uses, how wide each is."""
    found = decoder_keys(config) | {
        "expert_count": config.integer("num_experts", "num_local_experts", "n_routed_experts"),
        "expert_used_count": config.integer("num_experts_per_tok", "moe_topk", "top_k_experts"),
    }
    if "moe_intermediate_size" in config:
        found["expert_feed_forward_length"] = config.integer("moe_intermediate_size")
    return found


def _mixtral_names() -> Names:
    parts = {"w1": "ffn_gate_exps", "w3": "ffn_up_exps", "w2": "ffn_down_exps"}
    named = {f"block_sparse_moe.experts.X.{theirs}": ours for theirs, ours in parts.items()}
    return ATTENTION | NORMS_BEFORE | named | {"block_sparse_moe.gate": "ffn_gate_inp"}


def _qwen2_keys(config: CheckpointConfig) -> Pairs:
    return expert_keys(config) | {
        "expert_shared_feed_forward_length": config.integer("shared_expert_intermediate_size")
    }


def _granite_keys(config: CheckpointConfig) -> Pairs:
    found = granite_keys(config) | {
        "expert_count": config.integer("num_local_experts"),
        "expert_used_count": config.integer("num_experts_per_tok"),
    }
    if shared := config.integer("shared_intermediate_size", default=0):
        found["expert_shared_feed_forward_length"] = shared
    return found


def _glm4_keys(config: CheckpointConfig) -> Pairs:
    extra = config.integer("num_nextn_predict_layers", default=0)
    return (
        expert_keys(config)
        | shares(config)
        | {
            "block_count": config.integer("num_hidden_layers") + extra,
            "nextn_predict_layers": extra,
            "leading_dense_block_count": config.integer("first_k_dense_replace"),
            "expert_shared_count": config.integer("n_shared_experts"),
            "expert_gating_func": SIGMOID,
        }
    )


def shares(config: CheckpointConfig) -> Pairs:
    """How the shares of experts are scaled, and their groups."""
    found: Pairs = {
        "expert_weights_scale": config.number("routed_scaling_factor", default=1.0),
        "expert_weights_norm": config.flag("norm_topk_prob", default=True),
    }
    if config.integer("n_group", default=0) > 1:
        found["expert_group_count"] = config.integer("n_group")
        found["expert_group_used_count"] = config.integer("topk_group")
    return found


def _minimax_keys(config: CheckpointConfig) -> Pairs:
    return expert_keys(config) | {
        "expert_feed_forward_length": config.integer("intermediate_size"),
        "expert_gating_func": SIGMOID,
        "rope.dimension_count": config.integer("rotary_dim"),
    }


def _hunyuan_keys(config: CheckpointConfig) -> Pairs:
    width = _one_of_all(config, "intermediate_size")
    return hunyuan_keys(config) | {
        "expert_count": config.integer("num_experts"),
        "expert_used_count": _one_of_all(config, "moe_topk"),
        "expert_feed_forward_length": _one_of_all(config, "moe_intermediate_size", default=width),
        "expert_shared_feed_forward_length": width * _one_of_all(config, "num_shared_expert", default=1),
    }


def _one_of_all(config: CheckpointConfig, name: str, default: int | None = None) -> int:
    """A number, or the one that all entries of a list are. Raises ModelFileError."""
    value = config.get(name)
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    return CheckpointConfig({name: value}).integer(name, default=default)


def _ernie_keys(config: CheckpointConfig) -> Pairs:
    return decoder_keys(config) | {
        "expert_count": config.integer("moe_num_experts"),
        "expert_used_count": config.integer("moe_k"),
        "expert_feed_forward_length": config.integer("moe_intermediate_size"),
        "expert_shared_count": config.integer("moe_num_shared_experts", default=0),
        "expert_shared_feed_forward_length": config.integer("moe_intermediate_size")
        * config.integer("moe_num_shared_experts", default=0),
        "interleave_moe_layer_step": config.integer("moe_layer_interval", default=1),
        "leading_dense_block_count": config.integer("moe_layer_start_index", default=0),
    }


CONVERSIONS = {
    "MixtralForCausalLM": Conversion("llama", expert_keys, _mixtral_names(), changes=NEIGHBOURS),
    "Qwen3MoeForCausalLM": Conversion("qwen3moe", expert_keys, DECODER | HEAD_NORMS | EXPERTS),
    "Qwen2MoeForCausalLM": Conversion(
        "qwen2moe",
        _qwen2_keys,
        DECODER | EXPERTS | shared("shared_expert") | {"mlp.shared_expert_gate": "ffn_gate_inp_shexp"},
        changes={"ffn_gate_inp_shexp": lambda values, config: values.reshape(-1)},
    ),
    "OlmoeForCausalLM": Conversion("olmoe", expert_keys, DECODER | HEAD_NORMS | EXPERTS),
    "GraniteMoeForCausalLM": Conversion(
        "granitemoe",
        _granite_keys,
        ATTENTION
        | NORMS_BEFORE
        | {
            "block_sparse_moe.router.layer": "ffn_gate_inp",
            "block_sparse_moe.input_linear": STACKED_HALVES,
            "block_sparse_moe.output_linear": "ffn_down_exps",
            "shared_mlp.input_linear": (("ffn_gate_shexp", first_half), ("ffn_up_shexp", second_half)),
            "shared_mlp.output_linear": "ffn_down_shexp",
        },
        changes=NEIGHBOURS,
    ),
    "Glm4MoeForCausalLM": Conversion(
        "glm4moe",
        _glm4_keys,
        DECODER
        | HEAD_NORMS
        | EXPERTS
        | BIASED
        | shared("shared_experts")
        | {"post_attention_layernorm": "post_attention_norm"},
    ),
    "Dots1ForCausalLM": Conversion(
        "dots1", _glm4_keys, DECODER | HEAD_NORMS | EXPERTS | BIASED | shared("shared_experts")
    ),
    "MiniMaxM2ForCausalLM": Conversion(
        "minimax-m2",
        _minimax_keys,
        _mixtral_names() | HEAD_NORMS | {"block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias"},
    ),
    "HunYuanMoEV1ForCausalLM": Conversion(
        "hunyuan-moe",
        _hunyuan_keys,
        DECODER
        | EXPERTS
        | shared("shared_mlp")
        | {
            "mlp.gate.wg": "ffn_gate_inp",
            "self_attn.query_layernorm": "attn_q_norm",
            "self_attn.key_layernorm": "attn_k_norm",
        },
    ),
    "Ernie4_5_MoeForCausalLM": Conversion(
        "ernie4_5-moe",
        _ernie_keys,
        DECODER | EXPERTS | shared("shared_experts") | {"mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias"},
        changes={"exp_probs_b.bias": lambda values, config: values.reshape(-1)},
    ),
}

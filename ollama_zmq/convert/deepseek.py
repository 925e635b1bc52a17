"""DeepSeek V2 and V3: latent attention, whose matrix of keys and values is taken apart by head."""

from __future__ import annotations

from ollama_zmq.convert.checkpoint import Array
from ollama_zmq.convert.common import DECODER, Pairs, rope_table
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Change, Conversion, Names
from ollama_zmq.convert.experts import BIASED, EXPERTS, SIGMOID, SOFTMAX, expert_keys, shared, shares


def _deepseek_keys(config: CheckpointConfig) -> Pairs:
    rank, turned = config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim")
    plain, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
    n_shared = config.integer("n_shared_experts", default=0)
    found = (
        expert_keys(config)
        | shares(config)
        | {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": rank,
            "attention.key_length": rank + turned,
            "attention.value_length": rank,
            "attention.key_length_mla": plain + turned,
            "attention.value_length_mla": value,
            "rope.dimension_count": turned,
            "leading_dense_block_count": config.integer("first_k_dense_replace", default=0),
            "expert_shared_count": n_shared,
            "expert_gating_func": SIGMOID if config.get("scoring_func") == "sigmoid" or _has_bias(config) else SOFTMAX,
        }
    )
    if config.get("q_lora_rank"):
        found["attention.q_lora_rank"] = config.integer("q_lora_rank")
    table = rope_table(config)
    if table.get("rope_type", "type") == "yarn" and "mscale_all_dim" in table:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * table.number("mscale_all_dim")
    return found


def _has_bias(config: CheckpointConfig) -> bool:
    return config.model_class == "DeepseekV3ForCausalLM" or config.get("topk_method") == "noaux_tc"


def _of_head(part: str) -> Change:
    """Rows of ``kv_b_proj`` by head: the first are those of keys, written transposed, the others those of values."""

    def change(values: Array, config: CheckpointConfig) -> Array:
        plain, value = config.integer("qk_nope_head_dim"), config.integer("v_head_dim")
        heads = values.reshape(config.integer("num_attention_heads"), plain + value, values.shape[-1])
        return heads[:, :plain].swapaxes(1, 2) if part == "k" else heads[:, plain:]

    return change


DEEPSEEK: Names = (
    DECODER
    | EXPERTS
    | BIASED
    | shared("shared_experts")
    | {
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.kv_b_proj": (("attn_k_b", _of_head("k")), ("attn_v_b", _of_head("v"))),
    }
)


CONVERSIONS = {
    "DeepseekV2ForCausalLM": Conversion("deepseek2", _deepseek_keys, DEEPSEEK),
    "DeepseekV3ForCausalLM": Conversion("deepseek2", _deepseek_keys, DEEPSEEK),
}

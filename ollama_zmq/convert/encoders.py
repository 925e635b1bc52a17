"""Encoders, which turn a text into one vector, by the class that their makers run them with.

How rows become one vector stands in files beside the model's own, ``modules.json`` and what it names; they are those of
the library sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.common import Pairs, rope_table
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Conversion, Names, as_float32, first_half, float32_tensor, second_half
from ollama_zmq.convert.decoders import CONVERSIONS as DECODERS
from ollama_zmq.convert.decoders import gemma3_keys
from ollama_zmq.formats.gguf_writer import NewTensor

MEAN, FIRST, LAST = 1, 2, 3  # ``pooling_type``
POOLING = {
    "pooling_mode_mean_tokens": MEAN,
    "pooling_mode_cls_token": FIRST,
    "pooling_mode_lasttoken": LAST,
}


def pooling_keys(checkpoint: Checkpoint, default: int) -> Pairs:
    """How rows become one vector, as the files of sentence-transformers say."""
    folder = next((name for name in checkpoint.files if name.endswith("_Pooling/config.json")), None)
    modes = checkpoint.table(folder) if folder else {}
    return {"pooling_type": next((kind for name, kind in POOLING.items() if modes.get(name) is True), default)}


def _sizes(config: CheckpointConfig) -> Pairs:
    return {
        "block_count": config.integer("num_hidden_layers", "n_layer"),
        "context_length": config.integer("max_position_embeddings", "n_positions"),
        "embedding_length": config.integer("hidden_size", "n_embd"),
        "feed_forward_length": config.integer("intermediate_size", "n_inner"),
        "attention.head_count": config.integer("num_attention_heads", "n_head"),
        "attention.causal": False,
    }


def _bert_keys(config: CheckpointConfig) -> Pairs:
    return _sizes(config) | {
        "attention.layer_norm_epsilon": config.number("layer_norm_eps", "layer_norm_epsilon", default=1e-12)
    }


def _nomic_keys(config: CheckpointConfig) -> Pairs:
    return _bert_keys(config) | {"rope.freq_base": config.number("rotary_emb_base", default=10_000.0)}


def _modern_keys(config: CheckpointConfig) -> Pairs:
    table = config.table("rope_parameters")
    whole, windowed = rope_table(config), table.table("sliding_attention")
    return _sizes(config) | {
        "attention.layer_norm_epsilon": config.number("norm_eps", default=1e-5),
        "attention.sliding_window": config.integer("local_attention"),
        "attention.sliding_window_pattern": config.integer("global_attn_every_n_layers", default=3),
        "rope.freq_base": whole.number("rope_theta", default=config.number("global_rope_theta", default=160_000.0)),
        "rope.freq_base_swa": windowed.number(
            "rope_theta", default=config.number("local_rope_theta", default=10_000.0)
        ),
    }


def _gemma_keys(config: CheckpointConfig) -> Pairs:
    return gemma3_keys(config) | {"attention.causal": False}


def _dense_layers(checkpoint: Checkpoint) -> Sequence[NewTensor]:
    """The matrices behind the pooling of EmbeddingGemma, in files of their own."""
    made = []
    for number in (2, 3):
        name = f"{number}_Dense/linear.weight"
        if name in checkpoint.tensors:
            made.append(float32_tensor(f"dense_{number}.weight", as_float32(checkpoint.values(name))))
    return made


BERT_LAYER: Names = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
BERT_GLOBALS: Names = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "pooler.dense": (),
}
CONVERSIONS = {
    "BertModel": Conversion("bert", _bert_keys, BERT_LAYER, BERT_GLOBALS),
    "NomicBertModel": Conversion(
        "nomic-bert",
        _nomic_keys,
        {
            "attn.Wqkv": "attn_qkv",
            "attn.out_proj": "attn_output",
            "norm1": "attn_output_norm",
            "norm2": "layer_output_norm",
            "mlp.fc11": "ffn_up",
            "mlp.fc12": "ffn_gate",
            "mlp.fc2": "ffn_down",
        },
        {
            "embeddings.word_embeddings": "token_embd",
            "embeddings.token_type_embeddings": "token_types",
            "emb_ln": "token_embd_norm",
        },
    ),
    "ModernBertModel": Conversion(
        "modern-bert",
        _modern_keys,
        {
            "attn_norm": "attn_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.Wo": "attn_output",
            "mlp_norm": "ffn_norm",
            "mlp.Wi": (("ffn_gate", first_half), ("ffn_up", second_half)),
            "mlp.Wo": "ffn_down",
        },
        {"embeddings.tok_embeddings": "token_embd", "embeddings.norm": "token_embd_norm", "final_norm": "output_norm"},
    ),
    "Gemma3TextModel": Conversion(
        "gemma-embedding",
        _gemma_keys,
        DECODERS["Gemma3ForCausalLM"].layer,
        changes=DECODERS["Gemma3ForCausalLM"].changes,
        adds=_dense_layers,
    ),
}

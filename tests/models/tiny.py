"""Writes a small model of any architecture with random weights: whatever tensors the architecture says it reads.

For laws that hold whatever a model computes. Whether it computes the right thing is asked with other files, which are
written without the architecture's help.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from ollama_zmq.models.keys import Keys
from ollama_zmq.models.registry import architecture

V, D, H, G, E, F, X = 256, 64, 4, 2, 16, 96, 5
SIZES = {
    "block_count": 4,
    "context_length": 512,
    "embedding_length": D,
    "feed_forward_length": F,
    "attention.head_count": H,
    "attention.head_count_kv": G,
    "attention.key_length": E,
    "attention.value_length": E,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5,
}
SHAPES = {
    "token_embd": (V, D),
    "output": (V, D),
    "position_embd": (512, D),
    "rope_freqs": (E // 2,),
    "rope_factors_long": (E // 2,),
    "rope_factors_short": (E // 2,),
    "attn_q": (H * E, D),
    "attn_k": (G * E, D),
    "attn_v": (G * E, D),
    "attn_output": (D, H * E),
    "attn_q_norm": (E,),
    "attn_k_norm": (E,),
    "ffn_gate": (F, D),
    "ffn_up": (F, D),
    "ffn_down": (D, F),
    "ffn_gate_inp": (X, D),
    "ffn_gate_exps": (X, F, D),
    "ffn_up_exps": (X, F, D),
    "ffn_down_exps": (X, D, F),
    "exp_probs_b": (X,),
    "ffn_gate_shexp": (F, D),
    "ffn_up_shexp": (F, D),
    "ffn_down_shexp": (D, F),
    "ffn_gate_inp_shexp": (D,),
    "attn_sinks": (H,),
}


def write_tiny(path, name, keys=None, *, without=(), shapes=None, seed=0) -> Path:
    """Write a model of architecture *name* to *path* and return it.

    Args:
        keys: keys of the header without the architecture's name, beside and in place of ``SIZES``; None is no such key.
        without: names of tensors, as the architecture has them, that the file lacks.
        shapes: shapes of tensors beside and in place of ``SHAPES``; norms and what else is not there are as wide as D.
    """
    said = {key: value for key, value in (SIZES | (keys or {})).items() if value is not None}
    model = architecture(name)(Keys({f"{name}.{key}": value for key, value in said.items()}, name))
    rng, writer = np.random.default_rng(seed), gguf.GGUFWriter(str(path), name)
    for key, value in said.items():
        add_value(writer, f"{name}.{key}", value)
    wanted = {"token_embd": "token_embd", "output": "output"} | {key: key for key in model.globals}
    for i in range(said["block_count"]):
        wanted |= {f"blk.{i}.{key}": key for key in model.layer_weights(i)}
    for full, short in wanted.items():
        if short not in without:
            shape = shape_of(short, SHAPES | (shapes or {}))
            full_name = full if full.endswith(".bias") else f"{full}.weight"
            writer.add_tensor(full_name, draw(rng, short, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def shape_of(name, shapes):
    """The shape of the tensor called *name* within its layer; of a bias the rows of its matrix."""
    if name.endswith(".bias"):
        matrix = name.removesuffix(".bias")
        return shape_of(matrix, shapes)[: 2 if matrix.endswith("_exps") else 1]
    return shapes.get(name, (D,))


def draw(rng, name, shape):
    """Random values that keep the size of a hidden state: float16 matrices, float32 vectors."""
    if len(shape) > 1:
        return rng.normal(0, 1.5 * shape[-1] ** -0.5, shape).astype(np.float16)
    return (rng.normal(0, 0.1, shape) if name.endswith(".bias") else rng.uniform(0.5, 1.5, shape)).astype(np.float32)


def add_value(writer, key, value):
    """Add a key with the type that converters give it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, [bool(one) if isinstance(one, bool) else one for one in value])

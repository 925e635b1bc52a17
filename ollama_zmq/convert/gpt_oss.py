"""gpt-oss, whose experts are stored as four-bit numbers or, when it was trained further, as BF16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ollama_zmq.convert.checkpoint import Checkpoint
from ollama_zmq.convert.common import ATTENTION, Pairs
from ollama_zmq.convert.config import CheckpointConfig
from ollama_zmq.convert.conversion import Conversion, Names
from ollama_zmq.convert.experts import expert_keys
from ollama_zmq.errors import ModelFileError
from ollama_zmq.formats.gguf_writer import NewTensor
from ollama_zmq.formats.quants import QuantType


def _gpt_oss_keys(config: CheckpointConfig) -> Pairs:
    return expert_keys(config) | {
        "attention.sliding_window": config.integer("sliding_window"),
        "expert_feed_forward_length": config.integer("intermediate_size"),
    }


GPT_OSS: Names = (
    ATTENTION
    | {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "post_attention_norm",
        "self_attn.sinks": "attn_sinks.weight",
        "mlp.router": "ffn_gate_inp",
        "mlp.experts.gate_up_proj_bias": (
            ("ffn_gate_exps.bias", lambda values, config: values[:, 0::2]),
            ("ffn_up_exps.bias", lambda values, config: values[:, 1::2]),
        ),
        "mlp.experts.down_proj_bias": "ffn_down_exps.bias",
        "mlp.experts.gate_up_proj": (
            ("ffn_gate_exps.weight", lambda values, config: values[:, :, 0::2].swapaxes(1, 2)),
            ("ffn_up_exps.weight", lambda values, config: values[:, :, 1::2].swapaxes(1, 2)),
        ),
        "mlp.experts.down_proj": (("ffn_down_exps.weight", lambda values, config: values.swapaxes(1, 2)),),
    }
    | dict.fromkeys(
        (f"mlp.experts.{name}_proj_{part}" for name in ("gate_up", "down") for part in ("blocks", "scales")), ()
    )
)


def _mxfp4_experts(checkpoint: Checkpoint) -> Sequence[NewTensor]:
    """Experts that are stored as four-bit numbers and a scale for 32 of them; gate and up are every second row."""
    made = []
    for name in checkpoint.tensors:
        if name.endswith("_proj_blocks"):
            layer, matrix = name.split(".")[-4], name.split(".")[-1].removesuffix("_proj_blocks")
            targets = {"ffn_down_exps": slice(None)}
            if matrix == "gate_up":
                targets = {"ffn_gate_exps": slice(0, None, 2), "ffn_up_exps": slice(1, None, 2)}
            made += [_mxfp4(checkpoint, name, f"blk.{layer}.{ours}.weight", rows) for ours, rows in targets.items()]
    return made


def _mxfp4(checkpoint: Checkpoint, name: str, target: str, rows: slice) -> NewTensor:
    """One matrix in ggml's blocks: the scale, then 16 bytes whose low halves are the first 16 numbers.

    The checkpoint's bytes hold two neighbours each, the first in the low half.
    """
    stored, scales = checkpoint.tensors[name], checkpoint.tensors.get(f"{name.removesuffix('blocks')}scales")
    if len(stored.shape) != 4 or stored.shape[3] != 16 or scales is None or scales.shape != stored.shape[:3]:
        found = None if scales is None else list(scales.shape)
        raise ModelFileError(f"tensor {name!r} has shape {list(stored.shape)} and its scales {found}", tensor=name)
    X, N, blocks, _ = stored.shape
    n_rows = len(range(N)[rows])

    def chunks() -> Iterator[memoryview]:
        values = checkpoint.values(name)
        exponents = checkpoint.values(scales.name)
        for expert in range(X):
            halves = values[expert, rows]
            numbers = np.stack((halves & 15, halves >> 4), axis=-1).reshape(n_rows, blocks, 32)
            packed = numbers[..., :16] | numbers[..., 16:] << 4
            out = np.concatenate((exponents[expert, rows][..., None], packed), axis=-1, dtype=np.uint8)
            yield np.ascontiguousarray(out).data.cast("B")

    return NewTensor(target, QuantType.MXFP4, (X, n_rows, blocks * 32), chunks)


CONVERSIONS = {"GptOssForCausalLM": Conversion("gpt-oss", _gpt_oss_keys, GPT_OSS, adds=_mxfp4_experts)}

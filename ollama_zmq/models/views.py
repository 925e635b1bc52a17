"""Tensors that hold several matrices, one below the other: their rows as tensors of their own.

Rows of a matrix are contiguous bytes, quantized or not, so a part is an offset and a length: nothing is copied, no op
knows, and a program is the same whether its file has the parts fused or apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from ollama_zmq.errors import ModelFileError, ShapeError
from ollama_zmq.formats.gguf import TensorInfo
from ollama_zmq.models.architecture import Model

HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
GATE_OF_SHARED = "ffn_gate_inp_shexp"
QKV, GATE_UP = "attn_qkv", "ffn_up"


def with_parts(tensors: Mapping[str, TensorInfo], model: Model) -> dict[str, TensorInfo]:
    """Return *tensors* with the parts of fused ones in their place, where *model* reads the parts.

    ``attn_qkv`` is queries, then keys, then values; ``ffn_up`` where there is no gate is the gate, then up. A norm of
    each head by weights of its own [H, E] is a vector [H*E], the gate of a shared expert [D] a matrix of one row.

    Raises:
        ModelFileError: a fused tensor has other rows than its parts together.
    """
    found = dict(tensors)
    for i in range(model.sizes.n_layers):
        wanted = model.layer_weights(i)
        for ending in (".weight", ".bias"):
            if "attn_q" in wanted and (fused := found.pop(f"blk.{i}.{QKV}{ending}", None)):
                found |= _parts(fused, f"blk.{i}.", ending, model.sizes.heads[i].rows)
            up = found.get(f"blk.{i}.{GATE_UP}{ending}")
            if wanted.get("ffn_gate") and f"blk.{i}.ffn_gate.weight" not in tensors and up is not None:
                half = up.shape[0] // 2
                found |= _parts(up, f"blk.{i}.", ending, {"ffn_gate": half, "ffn_up": half})
        for name in (f"blk.{i}.{norm}.weight" for norm in HEAD_NORMS):
            if name in found:
                found[name] = replace(found[name], shape=(prod(found[name].shape),))
        gate = found.get(f"blk.{i}.{GATE_OF_SHARED}.weight")
        if gate is not None and len(gate.shape) == 1:
            found[gate.name] = replace(gate, shape=(1, *gate.shape))
    return found


def _parts(fused: TensorInfo, prefix: str, ending: str, rows: Mapping[str, int]) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    if fused.shape[0] != sum(rows.values()):
        counts = " and ".join(f"{n} of {name}" for name, n in rows.items())
        raise ModelFileError(f"tensor {fused.name!r} has {fused.shape[0]} rows, expected {counts}", tensor=fused.name)
    start = 0
    for part, n_rows in rows.items():
        name = f"{prefix}{part}{ending}"
        try:
            found[name] = fused.rows(name, start, start + n_rows)
        except ShapeError as error:
            raise ModelFileError(str(error), tensor=fused.name) from None
        start += n_rows
    return found

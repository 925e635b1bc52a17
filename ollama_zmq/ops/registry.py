"""The closed set of ops, by name. An op that is not here does not exist on the wire."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ollama_zmq.errors import UnsupportedOp
from ollama_zmq.ops.activation import ACTIVATION
from ollama_zmq.ops.add import ADD
from ollama_zmq.ops.add_bias import ADD_BIAS
from ollama_zmq.ops.attention import ATTENTION, ATTENTION_SINKS
from ollama_zmq.ops.choose_experts import CHOOSE_EXPERTS
from ollama_zmq.ops.clamp import CLAMP
from ollama_zmq.ops.embed import EMBED
from ollama_zmq.ops.expert_bias import EXPERT_BIAS
from ollama_zmq.ops.expert_linear import EXPERT_LINEAR
from ollama_zmq.ops.expert_shares import EXPERT_SHARES
from ollama_zmq.ops.expert_sum import EXPERT_SUM
from ollama_zmq.ops.gated import GATED
from ollama_zmq.ops.join_heads import JOIN_HEADS
from ollama_zmq.ops.l2_norm import L2_NORM
from ollama_zmq.ops.layer_norm import LAYER_NORM
from ollama_zmq.ops.linear import LINEAR
from ollama_zmq.ops.linear_per_head import LINEAR_PER_HEAD
from ollama_zmq.ops.mul import MUL
from ollama_zmq.ops.mul_weight import MUL_WEIGHT
from ollama_zmq.ops.rms_norm import RMS_NORM
from ollama_zmq.ops.rope import ROPE
from ollama_zmq.ops.scale import SCALE
from ollama_zmq.ops.scale_by_position import SCALE_BY_POSITION
from ollama_zmq.ops.softcap import SOFTCAP
from ollama_zmq.ops.spec import Op, shown
from ollama_zmq.ops.store_kv import STORE_KV
from ollama_zmq.ops.swiglu_clamped import SWIGLU_CLAMPED
from ollama_zmq.ops.take_of_heads import TAKE_OF_HEADS
from ollama_zmq.ops.take_rows import TAKE_ROWS
from ollama_zmq.ops.xielu import XIELU

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        ACTIVATION,
        ADD,
        ADD_BIAS,
        ATTENTION,
        ATTENTION_SINKS,
        CHOOSE_EXPERTS,
        CLAMP,
        EMBED,
        EXPERT_BIAS,
        EXPERT_LINEAR,
        EXPERT_SHARES,
        EXPERT_SUM,
        GATED,
        JOIN_HEADS,
        L2_NORM,
        LAYER_NORM,
        LINEAR,
        LINEAR_PER_HEAD,
        MUL,
        MUL_WEIGHT,
        RMS_NORM,
        ROPE,
        SCALE,
        SCALE_BY_POSITION,
        SOFTCAP,
        STORE_KV,
        SWIGLU_CLAMPED,
        TAKE_OF_HEADS,
        TAKE_ROWS,
        XIELU,
    )
}


def op_named(name: str) -> Op:
    """Return the op called *name*.

    Raises:
        UnsupportedOp: there is none.
    """
    try:
        return OPS[name]
    except KeyError:
        raise UnsupportedOp(f"unknown op {shown(name)}: the peers run different versions of ollama-zmq") from None


def op_digests(names: Iterable[str]) -> dict[str, str]:
    """Return name -> digest of its declaration; two peers with equal digests mean the same by an op.

    Raises:
        UnsupportedOp: there is none of that name.
    """
    return {name: _digest(op_named(name)) for name in sorted(set(names))}


def _digest(op: Op) -> str:
    attrs = sorted((name, repr(attr)) for name, attr in op.attrs.items())
    return hashlib.sha256(repr((op.name, sorted(op.args.items()), attrs)).encode()).hexdigest()[:16]

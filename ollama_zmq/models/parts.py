"""What the layers of several architectures have in common: functions, each of them a paragraph of a paper.

``w`` are the weights of the layer by name. A part that an architecture does otherwise is written there, not asked for
by a flag here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ollama_zmq.models.architecture import Given, PagedKv
from ollama_zmq.models.keys import Keys
from ollama_zmq.models.sizes import Heads
from ollama_zmq.ops.builder import Ops, Value
from ollama_zmq.ops.state import NO_WINDOW

ATTENTION = {
    "attn_q": True,  # H*E D
    "attn_q.bias": False,  # H*E
    "attn_k": True,  # G*E D
    "attn_k.bias": False,  # G*E
    "attn_v": True,  # G*F D
    "attn_v.bias": False,  # G*F
    "attn_output": True,  # D H*F
    "attn_output.bias": False,  # D
}
GATED = {  # a feed-forward layer of width F
    "ffn_gate": True,  # F D
    "ffn_gate.bias": False,  # F
    "ffn_up": True,  # F D
    "ffn_up.bias": False,  # F
    "ffn_down": True,  # D F
    "ffn_down.bias": False,  # D
}
UNGATED = {"ffn_up": True, "ffn_up.bias": False, "ffn_down": True, "ffn_down.bias": False}  # F D, F, D F, D
HEAD_NORMS = {"attn_q_norm": True, "attn_k_norm": True}  # E, or of all heads H*E and G*E
NORMS = {"attn_norm": True, "ffn_norm": True}  # D
LAYER_NORMS = NORMS | {"attn_norm.bias": True, "ffn_norm.bias": True}  # D
NORMS_AFTER = {"post_attention_norm": True, "post_ffw_norm": True}  # D


def linear(ops: Ops, x: Value, w: Mapping[str, Value], name: str) -> Value:
    """``x @ w[name].T``, and the bias of that name where the file has one."""
    return ops.linear(x, w[name], w.get(f"{name}.bias"))


def projections(ops: Ops, x: Value, w: Mapping[str, Value]) -> tuple[Value, Value, Value]:
    """Queries [T, H*E], keys [T, G*E] and values [T, G*F] of *x*."""
    return linear(ops, x, w, "attn_q"), linear(ops, x, w, "attn_k"), linear(ops, x, w, "attn_v")


def paged_kv(heads: Heads, window: int = NO_WINDOW) -> tuple[PagedKv, ...]:
    """The state of a layer that attends to the last *window* positions, or to all that came before."""
    return (PagedKv(heads.n_kv_heads, heads.head_dim, heads.value_dim, window),)


def grouped_attention(
    ops: Ops,
    q: Value,
    k: Value,
    v: Value,
    given: Given,
    heads: Heads,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float = 0.0,
    sinks: Value | None = None,
) -> Value:
    """Keys [T, G*E] and values [T, G*F] into the layer's cache; queries [T, H*E] -> [T, H*F]."""
    sizes = {"n_kv_heads": heads.n_kv_heads, "head_dim": heads.head_dim, "value_dim": heads.value_dim}
    cache = given.states[0]
    ops.store_kv(k, v, cache, **sizes)
    return ops.attention(
        q,
        cache,
        sinks,
        n_heads=heads.n_heads,
        **sizes,
        scale=heads.scale if scale is None else scale,
        window=window,
        softcap=softcap,
    )


def feed_forward(ops: Ops, x: Value, w: Mapping[str, Value], function: str = "silu", suffix: str = "") -> Value:
    """``down(function(gate(x)) * up(x))`` [T, D]: Shazeer 2020, "GLU Variants Improve Transformer"."""
    gate, up = linear(ops, x, w, f"ffn_gate{suffix}"), linear(ops, x, w, f"ffn_up{suffix}")
    return linear(ops, ops.gated(gate, up, function=function), w, f"ffn_down{suffix}")


def plain_feed_forward(ops: Ops, x: Value, w: Mapping[str, Value], function: str) -> Value:
    """``down(function(up(x)))`` [T, D]: a feed-forward without a gate."""
    return linear(ops, ops.activation(linear(ops, x, w, "ffn_up"), function=function), w, "ffn_down")


def layer_norm(ops: Ops, x: Value, w: Mapping[str, Value], name: str, eps: float) -> Value:
    """The layer norm called *name*, with the bias that it has in the file."""
    return ops.layer_norm(x, w[name], w.get(f"{name}.bias"), eps=eps)


def layer_norm_head(ops: Ops, hidden_state: Value, given: Given, eps: float) -> Value:
    """The last norm and the output matrix: hidden state [R, D] -> logits [R, V]."""
    x = layer_norm(ops, hidden_state, given.globals, "output_norm", eps)
    return ops.linear(x, given.globals["output"], given.globals.get("output.bias"))


def rms_head(ops: Ops, hidden_state: Value, given: Given, eps: float) -> Value:
    """The last norm and the output matrix: hidden state [R, D] -> logits [R, V]."""
    x = ops.rms_norm(hidden_state, given.globals["output_norm"], eps=eps)
    return ops.linear(x, given.globals["output"], given.globals.get("output.bias"))


def windows(
    keys: Keys, period: int, *, window: int | None = None, first_global: bool = False
) -> tuple[int | None, ...]:
    """Return each layer's window, None where it attends to all: of *period* layers the last one does.

    *period* is what the file leaves out; *window* as well. With *first_global* it is the first of them.

    Raises:
        ModelFileError: the window is 0, or the pattern has another length than there are layers.
    """
    key = "attention.sliding_window_pattern"
    size, n_layers = keys.integer("attention.sliding_window", window), keys.n_layers
    if keys.has_list(key):
        windowed = [bool(one) for one in keys.per_layer(key)]
    else:
        period = keys.integer(key, period)
        windowed = [(i % period != 0) if first_global else (i % period != period - 1) for i in range(n_layers)]
    return tuple(size if one else None for one in windowed)

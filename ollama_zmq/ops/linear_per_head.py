"""Multiply each head of a row by a matrix of its own: keys and values of multi-head latent attention.

    out[t, h*N + n] = sum_k x[t, h*K + k] * weight[h, n, k]

The weight is a stack of matrices [H, N, K], as GGUF stores ``attn_k_b`` and ``attn_v_b``; its types, and how a device
may round x, are those of ``linear``.

Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1 and appendix C.
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.spec import Input, Op, Output, Size, Weight

MAX_HEADS = 1024


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    W, H, K = sizes["W"], sizes["H"], sizes["K"]
    if not isinstance(H, int) or H > MAX_HEADS:
        return f"{H} heads, at most {MAX_HEADS}"
    return "" if isinstance(K, int) and W == H * K else f"x: W={W}, expected H*K={H}*{K}"


LINEAR_PER_HEAD = Op(
    name="linear_per_head",
    args={"x": Input("T W"), "weight": Weight("H N K"), "out": Output("T H*N")},
    rtol=2e-2,
    atol=1e-6,
    rule=_rule,
)

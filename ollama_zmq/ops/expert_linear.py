"""Multiply each row by the weight matrices of its own experts, and of no other.

    slots[t]         = the n_used lowest experts with chosen[t, x] != 0; where they are fewer, the lowest others too
    out[t, j*N + n]  = sum_k x[t, k] * weight[slots[t, j], n, k]              the slots share x [T, K]
    out[t, j*N + n]  = sum_k x[t, j*K + k] * weight[slots[t, j], n, k]        or each has its own, [T, n_used*K]

The weight is a stack of matrices [X, N, K], as GGUF stores ``ffn_gate_exps``; its types, and how a device may round x,
are those of ``linear``. A row does not depend on which other rows use its experts.
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.choose_experts import N_USED, too_few
from ollama_zmq.ops.spec import Input, Op, Output, Size, Weight


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    W, K, J = sizes["W"], sizes["K"], attrs["n_used"]
    if not isinstance(K, int) or W not in (K, J * K):
        return f"x: W={W}, expected K={K} or n_used*K={J}*{K}"
    return too_few(attrs, sizes)


EXPERT_LINEAR = Op(
    name="expert_linear",
    args={"x": Input("T W"), "chosen": Input("T X"), "weight": Weight("X N K"), "out": Output("T J*N")},
    attrs={"n_used": N_USED},
    rtol=2e-2,
    atol=1e-6,
    rule=_rule,
)

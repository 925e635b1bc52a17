"""Add to each of a token's slots the bias of its expert.

    out[t, j*N + n] = x[t, j*N + n] + bias[slots[t, j], n]

Slots are those of ``expert_linear``; the biases [X, N] may be of any type that its weights may have.
"""

from collections.abc import Mapping
from typing import Any

from ollama_zmq.ops.choose_experts import N_USED, too_few
from ollama_zmq.ops.spec import Input, Op, Output, Size, Weight


def _rule(attrs: Mapping[str, Any], sizes: Mapping[str, Size]) -> str:
    W, N, J = sizes["W"], sizes["N"], attrs["n_used"]
    return too_few(attrs, sizes) or (
        "" if isinstance(N, int) and W == J * N else f"x: W={W}, expected n_used*N={J}*{N}"
    )


EXPERT_BIAS = Op(
    name="expert_bias",
    args={"x": Input("T W"), "chosen": Input("T X"), "bias": Weight("X N"), "out": Output("T W")},
    attrs={"n_used": N_USED},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    rule=_rule,
)

"""The gate of gpt-oss: a SwiGLU of limited numbers, whose other factor is one more.

    g = min(gate[t, f], limit)        u = min(max(up[t, f], -limit), limit)
    out[t, f] = g / (1 + exp(-alpha * g)) * (u + 1)

Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", and the reference code beside it.
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

SWIGLU_CLAMPED = Op(
    name="swiglu_clamped",
    args={"gate": Input("T F"), "up": Input("T F"), "out": Output("T F")},
    attrs={"alpha": Attr(float, 0.0, 100.0), "limit": Attr(float, 1e-6, 1e6)},
    rtol=3e-6,
    atol=2e-6,
    by_row=True,
    in_place=("gate", "up"),
)

"""Bend every number towards a cap that it does not reach.

    out[t, d] = cap * tanh(x[t, d] / cap)

Source: Gemma Team 2024, "Gemma 2", section 2.
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

SOFTCAP = Op(
    name="softcap",
    args={"x": Input("T D"), "out": Output("T D")},
    attrs={"cap": Attr(float, 1e-6, 1e9)},
    rtol=3e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)

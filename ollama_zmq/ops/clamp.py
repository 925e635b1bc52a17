"""Hold every number within a limit.

    out[t, d] = min(max(x[t, d], -limit), limit)

A NaN stays one.
"""

from ollama_zmq.ops.spec import Attr, Input, Op, Output

CLAMP = Op(
    name="clamp",
    args={"x": Input("T D"), "out": Output("T D")},
    attrs={"limit": Attr(float, 1e-30, 1e30)},
    rtol=1e-6,
    atol=1e-6,
    by_row=True,
    in_place=("x",),
)
